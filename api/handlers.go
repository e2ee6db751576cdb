package api

import (
	"context"
	"net/http"
	"strconv"
	"syscall"
)

// maxSignal is the last signal of Linux, SIGRTMAX (signal(7)).
const maxSignal = 64

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

func (s *Server) kill(w http.ResponseWriter, r *http.Request) {
	var req KillRequest
	err := decode(r.Body, &req)
	if err == nil && (req.Signal < 1 || req.Signal > maxSignal) {
		err = invalid("invalid signal: " + strconv.Itoa(req.Signal))
	}
	if err == nil {
		err = s.backend.Kill(syscall.Signal(req.Signal))
	}
	if err != nil {
		fail(w, err)
		return
	}
	w.WriteHeader(http.StatusOK)
}

func (s *Server) rename(w http.ResponseWriter, r *http.Request) {
	var req RenameRequest
	err := decode(r.Body, &req)
	if err == nil {
		err = s.backend.Rename(req.Name)
	}
	if err != nil {
		fail(w, err)
		return
	}
	w.WriteHeader(http.StatusOK)
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
