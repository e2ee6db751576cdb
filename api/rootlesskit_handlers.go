package api

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// rootlessKitProtos are the protocols that a RootlessKitPortSpec may name. The digit is an address family.
var rootlessKitProtos = []string{"tcp", "tcp4", "tcp6", "udp", "udp4", "udp6"}

func (s *Server) rootlessKitInfo(w http.ResponseWriter, _ *http.Request) {
	box := s.backend.Inspect()
	info := RootlessKitInfo{APIVersion: rootlessKitVersion, Version: rootlessKitVersion, StateDir: box.StateDir, ChildPID: box.InitPID,
		NetworkDriver: RootlessKitNetwork{Driver: "rootlessnet", DNS: box.DNS},
		PortDriver:    RootlessKitDriver{Driver: "rootlessnet", Protos: rootlessKitProtos, DisallowLoopbackChildIP: true},
	}
	if i := slices.IndexFunc(box.Addresses, netip.Addr.Is4); i >= 0 {
		info.NetworkDriver.ChildIP = box.Addresses[i]
	}
	answer(w, http.StatusOK, info)
}

func (s *Server) rootlessKitList(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, rootlessKitPorts(s.backend.Ports()))
}

// rootlessKitPorts joins the sockets of one mapping into one entry: a mapping that listens on every address of both families
// has two sockets.
func rootlessKitPorts(ports []Port) []RootlessKitPortStatus {
	list := []RootlessKitPortStatus{}
	index := map[int]int{} // into list, by ID
	for _, p := range ports {
		if i, ok := index[p.ID]; ok {
			if p.HostIP.IsUnspecified() {
				list[i].Spec.ParentIP = "" // every address of both families
			}
			continue
		}
		index[p.ID] = len(list)
		spec := RootlessKitPortSpec{Proto: p.Proto, ParentIP: p.HostIP.String(), ParentPort: int(p.HostPort), ChildPort: int(p.GuestPort)}
		if p.GuestIP.IsValid() {
			spec.ChildIP = p.GuestIP.String()
		}
		list = append(list, RootlessKitPortStatus{p.ID, spec})
	}
	return list
}

func (s *Server) rootlessKitAdd(w http.ResponseWriter, r *http.Request) {
	// Later versions of RootlessKit may send further fields, which decode would refuse.
	var spec RootlessKitPortSpec
	if err := json.NewDecoder(r.Body).Decode(&spec); err != nil {
		if tooLarge(err) {
			fail(w, errTooLarge(err))
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
		fail(w, errors.New("no socket was bound"))
		return
	}
	answer(w, http.StatusCreated, RootlessKitPortStatus{ports[0].ID, spec})
}

func (s *Server) rootlessKitRemove(w http.ResponseWriter, r *http.Request) {
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

func invalid(text string) *Error { return &Error{http.StatusBadRequest, text, nil} }

// mapping converts a spec with RootlessKit's defaults. The error is an *Error of status 400.
func (v RootlessKitPortSpec) mapping() (Mapping, error) {
	var m Mapping
	if !slices.Contains(rootlessKitProtos, v.Proto) {
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
