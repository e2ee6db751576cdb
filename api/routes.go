package api

import (
	"net/http"
	"slices"
	"strings"
)

// versions are the versions of the API that a Server has. Every path begins with one of them.
var versions = []string{"v1"}

// Paths of the sandbox's own part of the API.
const (
	pathSandbox = "/v1/sandbox"
	pathStats   = "/v1/sandbox/stats"
	pathPorts   = "/v1/sandbox/ports"
	pathLease   = "/v1/sandbox/lease"
	pathKill    = "/v1/sandbox/kill"
	pathRename  = "/v1/sandbox/rename"
)

// Paths of RootlessKit's part. RootlessKit's REST client fixes them.
const (
	pathRootlessKitInfo  = "/v1/info"
	pathRootlessKitPorts = "/v1/ports"
)

// route is one operation of the API. Its path is a pattern of http.ServeMux, which has the same syntax for parameters as OpenAPI.
type route struct {
	method, path string
	handle       http.HandlerFunc
}

// routes lists every operation. openapi.yaml describes the same ones.
func (s *Server) routes() []route {
	return []route{
		{http.MethodGet, pathSandbox, s.inspect},
		{http.MethodGet, pathStats, s.stats},
		{http.MethodGet, pathPorts, s.listPorts},
		{http.MethodPost, pathPorts, changePorts(http.StatusCreated, s.backend.AddPorts)},
		{http.MethodDelete, pathPorts, changePorts(http.StatusOK, s.backend.RemovePorts)},
		{http.MethodPost, pathLease, s.lease},
		{http.MethodPost, pathKill, s.kill},
		{http.MethodPost, pathRename, s.rename},

		{http.MethodGet, pathRootlessKitInfo, s.rootlessKitInfo},
		{http.MethodGet, pathRootlessKitPorts, s.rootlessKitList},
		{http.MethodPost, pathRootlessKitPorts, s.rootlessKitAdd},
		{http.MethodDelete, pathRootlessKitPorts + "/{id}", s.rootlessKitRemove},
	}
}

// newMux serves the routes. It answers other methods of their paths with 405, and other paths with 404, both in JSON.
func newMux(routes []route) *http.ServeMux {
	mux := http.NewServeMux()
	methods := make(map[string][]string)
	for _, r := range routes {
		mux.HandleFunc(r.method+" "+r.path, r.handle)
		methods[r.path] = append(methods[r.path], r.method)
		if r.method == http.MethodGet {
			methods[r.path] = append(methods[r.path], http.MethodHead) // ServeMux answers HEAD by the handler of GET
		}
	}
	for path, allowed := range methods {
		slices.Sort(allowed)
		mux.HandleFunc(path, methodNotAllowed(strings.Join(allowed, ", ")))
	}
	mux.HandleFunc("/", notFound)
	return mux
}

func methodNotAllowed(allowed string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Allow", allowed) // required by RFC 9110, section 15.5.6
		fail(w, &Error{http.StatusMethodNotAllowed, "method not allowed", nil})
	}
}

// notFound answers an unknown path or version, and lists the versions that exist.
func notFound(w http.ResponseWriter, r *http.Request) {
	answer(w, http.StatusNotFound, errorBody{
		Message:  "page not found: " + r.URL.Path + " (versions of this API: " + strings.Join(versions, ", ") + ")",
		Versions: versions,
	})
}
