package api

import (
	"context"
	"net/http"
)

func (s *Server) inspect(w http.ResponseWriter, _ *http.Request) {
	box := s.backend.Inspect()
	box.Command, box.Ports = orEmpty(box.Command), orEmpty(box.Ports)
	answer(w, http.StatusOK, box)
}

func (s *Server) stats(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, s.backend.Stats())
}

func (s *Server) listPorts(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, orEmpty(s.backend.Ports()))
}

// changePorts returns the handler of POST and DELETE, which differ in the status of a success and in the change.
func changePorts(status int, change func(context.Context, string) ([]Port, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req PortRequest
		if err := decode(r.Body, &req); err != nil {
			fail(w, err)
			return
		}
		ports, err := change(r.Context(), req.Spec)
		if err != nil {
			fail(w, err)
			return
		}
		answer(w, status, orEmpty(ports))
	}
}
