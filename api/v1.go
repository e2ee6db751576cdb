package api

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// The REST API of RootlessKit, version 1.1.1, so that rootlessctl and what Docker and containerd have to ask it for ports
// can ask us. Its words: the parent is the host, the child the guest.

const v1Version = "1.1.1"

type v1Info struct {
	APIVersion    string    `json:"apiVersion"`
	Version       string    `json:"version"`
	StateDir      string    `json:"stateDir"`
	ChildPID      int       `json:"childPID"`
	NetworkDriver v1Network `json:"networkDriver"`
	PortDriver    v1Driver  `json:"portDriver"`
}

type v1Network struct {
	Driver         string       `json:"driver"`
	DNS            []netip.Addr `json:"dns,omitempty"`
	ChildIP        netip.Addr   `json:"childIP,omitzero"`
	DynamicChildIP bool         `json:"dynamicChildIP"`
}

type v1Driver struct {
	Driver string   `json:"driver"`
	Protos []string `json:"protos"`
	// DisallowLoopbackChildIP sends callers to the guest's address: its loopback is not on the link.
	DisallowLoopbackChildIP bool `json:"disallowLoopbackChildIP"`
}

type v1Spec struct {
	Proto      string `json:"proto"`
	ParentIP   string `json:"parentIP,omitempty"`
	ParentPort int    `json:"parentPort"`
	ChildIP    string `json:"childIP,omitempty"`
	ChildPort  int    `json:"childPort"`
}

type v1Status struct {
	ID   int    `json:"id"`
	Spec v1Spec `json:"spec"`
}

var v1Protos = []string{"tcp", "tcp4", "tcp6", "udp", "udp4", "udp6"}

// addV1 routes the paths of that API.
func (s *Server) addV1(mux *http.ServeMux) {
	for _, path := range []string{"/v1/info", "/v1/ports", "/v1/ports/{id}"} {
		mux.HandleFunc(path, notAllowed)
	}
	mux.HandleFunc("GET /v1/info", s.v1Info)
	mux.HandleFunc("GET /v1/ports", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, v1List(s.backend.Ports())) })
	mux.HandleFunc("POST /v1/ports", s.v1Add)
	mux.HandleFunc("DELETE /v1/ports/{id}", s.v1Remove)
}

func (s *Server) v1Info(w http.ResponseWriter, _ *http.Request) {
	box := s.backend.Inspect()
	info := v1Info{APIVersion: v1Version, Version: v1Version, StateDir: box.StateDir, ChildPID: box.InitPID,
		NetworkDriver: v1Network{Driver: "rootlessnet", DNS: box.DNS},
		PortDriver:    v1Driver{Driver: "rootlessnet", Protos: v1Protos, DisallowLoopbackChildIP: true},
	}
	if i := slices.IndexFunc(box.Addresses, netip.Addr.Is4); i >= 0 {
		info.NetworkDriver.ChildIP = box.Addresses[i]
	}
	answer(w, http.StatusOK, info)
}

// v1List puts the sockets of one mapping together: one that listens on every address of both families has two.
func v1List(ports []Port) []v1Status {
	list := []v1Status{}
	at := map[int]int{}
	for _, p := range ports {
		if i, ok := at[p.ID]; ok {
			if spec := &list[i].Spec; p.HostIP.IsUnspecified() {
				spec.ParentIP = "" // every address
			}
			continue
		}
		at[p.ID] = len(list)
		spec := v1Spec{Proto: p.Proto, ParentIP: p.HostIP.String(), ParentPort: int(p.HostPort), ChildPort: int(p.GuestPort)}
		if p.GuestIP.IsValid() {
			spec.ChildIP = p.GuestIP.String()
		}
		list = append(list, v1Status{p.ID, spec})
	}
	return list
}

func (s *Server) v1Add(w http.ResponseWriter, r *http.Request) {
	// Unknown fields are those of later versions: decode would refuse them.
	var spec v1Spec
	if err := json.NewDecoder(r.Body).Decode(&spec); err != nil {
		if tooLarge(err) {
			fail(w, &Error{http.StatusRequestEntityTooLarge, "request too large", err})
			return
		}
		fail(w, invalid("invalid port spec: "+err.Error()))
		return
	}
	m, err := spec.mapping()
	if err != nil {
		fail(w, err)
		return
	}
	ports, err := s.backend.AddMapping(r.Context(), m)
	if err != nil {
		fail(w, err)
		return
	}
	if len(ports) == 0 {
		fail(w, &Error{http.StatusInternalServerError, "nothing was bound", nil})
		return
	}
	answer(w, http.StatusCreated, v1Status{ports[0].ID, spec})
}

func invalid(text string) *Error { return &Error{http.StatusBadRequest, text, nil} }

// mapping reads a spec as RootlessKit does.
func (v v1Spec) mapping() (Mapping, error) {
	var m Mapping
	if !slices.Contains(v1Protos, v.Proto) {
		return m, invalid("unsupported proto: " + v.Proto)
	}
	m.Proto = v.Proto[:3]
	for _, port := range []struct {
		name string
		n    int
		into *uint16
	}{{"parentPort", v.ParentPort, &m.HostPort}, {"childPort", v.ChildPort, &m.GuestPort}} {
		if port.n < 1 || port.n > 65535 {
			return m, invalid("invalid " + port.name + ": " + strconv.Itoa(port.n))
		}
		*port.into = uint16(port.n)
	}
	for _, ip := range []struct {
		name, text string
		into       *netip.Addr
	}{{"parentIP", v.ParentIP, &m.HostIP}, {"childIP", v.ChildIP, &m.GuestIP}} {
		if ip.text == "" {
			continue
		}
		a, err := netip.ParseAddr(ip.text)
		if err != nil || a.Zone() != "" {
			return m, invalid("invalid " + ip.name + ": " + strconv.Quote(ip.text))
		}
		*ip.into = a.Unmap()
	}
	if m.GuestIP.IsUnspecified() {
		m.GuestIP = netip.Addr{}
	}
	if m.GuestIP.IsLoopback() {
		return m, invalid("childIP cannot be a loopback address: " + v.ChildIP)
	}
	switch family := strings.TrimPrefix(v.Proto, m.Proto); {
	case family == "4" && !m.HostIP.IsValid():
		m.HostIP = netip.IPv4Unspecified()
	case family == "6" && !m.HostIP.IsValid():
		m.HostIP = netip.IPv6Unspecified()
	case family == "4" && !m.HostIP.Is4(), family == "6" && !m.HostIP.Is6():
		return m, invalid("parentIP is not of the family of " + v.Proto + ": " + v.ParentIP)
	}
	return m, nil
}

func (s *Server) v1Remove(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.Atoi(r.PathValue("id"))
	if err != nil {
		fail(w, invalid("invalid id: "+strconv.Quote(r.PathValue("id"))))
		return
	}
	if _, err := s.backend.RemoveMapping(r.Context(), id); err != nil {
		fail(w, err)
		return
	}
	w.WriteHeader(http.StatusOK)
}

func notAllowed(w http.ResponseWriter, _ *http.Request) {
	fail(w, &Error{http.StatusMethodNotAllowed, "method not allowed", nil})
}
