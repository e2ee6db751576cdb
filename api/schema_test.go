package api

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"net/http"
	"net/netip"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
)

// loadSchema reads openapi.yaml and validates it as an OpenAPI document.
var loadSchema = sync.OnceValues(func() (*openapi3.T, error) {
	doc, err := openapi3.NewLoader().LoadFromFile("openapi.yaml")
	if err != nil {
		return nil, err
	}
	return doc, doc.Validate(openapi3.NewLoader().Context)
})

func schema(t *testing.T) *openapi3.T {
	t.Helper()
	doc, err := loadSchema()
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// operations are the wire types of each operation: the request, nil without a body; the status of a success; its answer.
var operations = map[string]struct {
	request any
	status  int
	answer  any
}{
	"GET /v1/sandbox":          {nil, http.StatusOK, Sandbox{}},
	"GET /v1/sandbox/stats":    {nil, http.StatusOK, Stats{}},
	"GET /v1/sandbox/ports":    {nil, http.StatusOK, []Port{}},
	"POST /v1/sandbox/ports":   {PortRequest{}, http.StatusCreated, []Port{}},
	"DELETE /v1/sandbox/ports": {PortRequest{}, http.StatusOK, []Port{}},
	"POST /v1/sandbox/lease":   {LeaseRequest{}, http.StatusSwitchingProtocols, nil},
	"POST /v1/sandbox/kill":    {KillRequest{}, http.StatusOK, nil},
	"POST /v1/sandbox/rename":  {RenameRequest{}, http.StatusOK, nil},
	"GET /v1/info":             {nil, http.StatusOK, RootlessKitInfo{}},
	"GET /v1/ports":            {nil, http.StatusOK, []RootlessKitPortStatus{}},
	"POST /v1/ports":           {RootlessKitPortSpec{}, http.StatusCreated, RootlessKitPortStatus{}},
	"DELETE /v1/ports/{id}":    {nil, http.StatusOK, nil},
}

func TestSchemaHasTheRoutesOfTheServer(t *testing.T) {
	var served, described []string
	for _, r := range NewServer(newFake(), ServerOptions{}).routes() {
		served = append(served, r.method+" "+r.path)
	}
	for p, item := range schema(t).Paths.Map() {
		for method := range item.Operations() {
			described = append(described, method+" "+p)
		}
	}
	slices.Sort(served)
	slices.Sort(described)
	if !slices.Equal(served, described) {
		t.Errorf("the server has\n%q\nopenapi.yaml has\n%q", served, described)
	}
	if listed := slices.Sorted(maps.Keys(operations)); !slices.Equal(served, listed) {
		t.Errorf("the server has\n%q\nthe table operations has\n%q", served, listed)
	}
}

func TestEveryPathHasAVersion(t *testing.T) {
	for _, r := range NewServer(newFake(), ServerOptions{}).routes() {
		if version := strings.Split(r.path, "/")[1]; !slices.Contains(versions, version) {
			t.Errorf("%s begins with none of the versions %q", r.path, versions)
		}
	}
}

// TestSchemaHasTheWireTypes compares the bodies of all operations with the Go types, field by field and in both directions.
func TestSchemaHasTheWireTypes(t *testing.T) {
	doc := schema(t)
	c := comparison{t, map[string]bool{}}
	for name, want := range operations {
		method, p, _ := strings.Cut(name, " ")
		op := doc.Paths.Find(p).GetOperation(method)
		if op == nil {
			t.Errorf("openapi.yaml lacks %s", name)
			continue
		}
		var request, answer *openapi3.SchemaRef
		if op.RequestBody != nil {
			request = jsonSchema(op.RequestBody.Value.Content)
		}
		c.body(name+": request", want.request, request)
		success := op.Responses.Status(want.status)
		if success == nil {
			t.Errorf("%s: openapi.yaml lacks status %d", name, want.status)
			continue
		}
		answer = jsonSchema(success.Value.Content)
		c.body(name+": answer", want.answer, answer)
		for status, response := range op.Responses.Map() {
			if n, _ := strconv.Atoi(status); n >= http.StatusBadRequest {
				if ref := jsonSchema(response.Value.Content); ref == nil || path.Base(ref.Ref) != "Error" {
					t.Errorf("%s: status %s has no body of the schema Error", name, status)
				}
			}
		}
	}
	// The two schemas of a failure are one Go type: versions is left out of all but the answers to unknown paths.
	c.compared["Error"], c.compared["UnknownPath"] = true, true
	fields := slices.Sorted(maps.Keys(jsonFields(reflect.TypeFor[errorBody]())))
	if got := slices.Sorted(maps.Keys(doc.Components.Schemas["UnknownPath"].Value.Properties)); !slices.Equal(got, fields) {
		t.Errorf("UnknownPath has %q, errorBody has %q", got, fields)
	}
	for name := range doc.Components.Schemas {
		if !c.compared[name] {
			t.Errorf("no wire type uses the schema %s", name)
		}
	}
}

func jsonSchema(content openapi3.Content) *openapi3.SchemaRef {
	if media := content.Get("application/json"); media != nil {
		return media.Schema
	}
	return nil
}

// comparison compares Go types with schemas.
type comparison struct {
	*testing.T
	compared map[string]bool // names of schemas
}

func (c comparison) body(where string, value any, ref *openapi3.SchemaRef) {
	c.Helper()
	if (value == nil) != (ref == nil) {
		c.Errorf("%s: the server has a body: %v, openapi.yaml: %v", where, value != nil, ref != nil)
		return
	}
	if value != nil {
		c.compare(where, reflect.TypeOf(value), ref)
	}
}

// named are the schemas of Go types that are no structs.
var named = map[reflect.Type]string{
	reflect.TypeFor[netip.Addr]():   "Address",
	reflect.TypeFor[netip.Prefix](): "Prefix",
	reflect.TypeFor[uint16]():       "PortNumber",
	reflect.TypeFor[[]Port]():       "Ports",

	reflect.TypeFor[[]RootlessKitPortStatus](): "RootlessKitPorts",
}

// enums are the values of the Go types that have constants.
var enums = map[reflect.Type][]any{
	reflect.TypeFor[Status]():    {string(StatusCreated), string(StatusRunning), string(StatusLingering), string(StatusExited)},
	reflect.TypeFor[LeaseKind](): {string(LeaseMember), string(LeaseExec)},
}

// compare reports differences between a Go type and a schema.
func (c comparison) compare(where string, typ reflect.Type, ref *openapi3.SchemaRef) {
	c.Helper()
	name, s := path.Base(ref.Ref), ref.Value
	if ref.Ref != "" {
		c.compared[name] = true
	}
	if want, ok := named[typ]; ok && want != name {
		c.Errorf("%s: %v has the schema %q, want %s", where, typ, ref.Ref, want)
	}
	if want := enums[typ]; !reflect.DeepEqual(want, s.Enum) && want != nil {
		c.Errorf("%s: %v has the values %q in openapi.yaml, want %q", where, typ, s.Enum, want)
	}
	if !s.Type.Is(jsonType(typ)) {
		c.Errorf("%s: %v has type %v in openapi.yaml, want %s", where, typ, s.Type, jsonType(typ))
		return
	}
	switch {
	case typ == reflect.TypeFor[time.Time]():
		if s.Format != "date-time" {
			c.Errorf("%s: %v has format %q", where, typ, s.Format)
		}
	case typ.Kind() == reflect.Pointer:
		c.compare(where, typ.Elem(), ref)
	case typ.Kind() == reflect.Slice:
		c.compare(where+"[]", typ.Elem(), s.Items)
	case typ.Kind() == reflect.Map:
		if s.AdditionalProperties.Schema == nil {
			c.Errorf("%s: no schema of the values", where)
			return
		}
		c.compare(where+"{}", typ.Elem(), s.AdditionalProperties.Schema)
	case typ.Kind() == reflect.Struct && jsonType(typ) == "object":
		if name != typ.Name() {
			c.Errorf("%s: %v has the schema %q", where, typ, ref.Ref)
		}
		c.fields(where, typ, s)
	case typ.Kind() == reflect.Uint64:
		if s.Min == nil || *s.Min != 0 {
			c.Errorf("%s: %v has no minimum of 0", where, typ)
		}
	}
}

// fields compares the fields of a struct: their names, their types, and which are always there.
func (c comparison) fields(where string, typ reflect.Type, s *openapi3.Schema) {
	c.Helper()
	fields := jsonFields(typ)
	var required []string
	for name, f := range fields {
		property := s.Properties[name]
		if property == nil {
			c.Errorf("%s: openapi.yaml lacks %s.%s", where, typ.Name(), name)
			continue
		}
		if !f.omitted {
			required = append(required, name)
		}
		c.compare(where+"."+name, f.typ, property)
	}
	for name := range s.Properties {
		if _, ok := fields[name]; !ok {
			c.Errorf("%s: openapi.yaml has %s.%s, the Go type has not", where, typ.Name(), name)
		}
	}
	slices.Sort(required)
	listed := slices.Sorted(slices.Values(s.Required))
	if !slices.Equal(required, listed) {
		c.Errorf("%s: openapi.yaml requires %q of %s, the Go type always has %q", where, listed, typ.Name(), required)
	}
}

type jsonField struct {
	typ     reflect.Type
	omitted bool // when it is zero
}

// jsonFields are the fields of a struct by their names in JSON.
func jsonFields(typ reflect.Type) map[string]jsonField {
	fields := map[string]jsonField{}
	for f := range typ.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		fields[name] = jsonField{f.Type, options == "omitempty" || options == "omitzero"}
	}
	return fields
}

// jsonType is the type that encoding/json gives a value.
func jsonType(typ reflect.Type) string {
	switch typ {
	case reflect.TypeFor[time.Time](), reflect.TypeFor[netip.Addr](), reflect.TypeFor[netip.Prefix]():
		return "string"
	}
	switch typ.Kind() {
	case reflect.Pointer:
		return jsonType(typ.Elem())
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "boolean"
	case reflect.Int, reflect.Uint16, reflect.Uint64:
		return "integer"
	case reflect.Slice:
		return "array"
	case reflect.Map, reflect.Struct:
		return "object"
	}
	panic("no JSON type for " + typ.String())
}

// TestSchemaHasTheStatusesOfTheSource finds the statuses that the package's source names. One that no operation has in
// openapi.yaml must be among those that info.description explains, because they belong to no operation.
func TestSchemaHasTheStatusesOfTheSource(t *testing.T) {
	described := map[int]bool{http.StatusMethodNotAllowed: true}
	doc := schema(t)
	for _, item := range doc.Paths.Map() {
		for _, op := range item.Operations() {
			for status := range op.Responses.Map() {
				n, err := strconv.Atoi(status)
				if err != nil {
					t.Errorf("%s: status %q", op.OperationID, status)
				}
				described[n] = true
			}
		}
	}
	mentioned := map[int]bool{}
	for name, n := range statusesInSource(t) {
		mentioned[n] = true
		if !described[n] {
			t.Errorf("the source has http.%s, openapi.yaml has no status %d", name, n)
		}
	}
	for n := range described {
		if !mentioned[n] {
			t.Errorf("openapi.yaml has status %d, the source does not name it", n)
		}
	}
	if !strings.Contains(doc.Info.Description, strconv.Itoa(http.StatusMethodNotAllowed)) {
		t.Error("info.description does not explain status 405")
	}
}

// statusesInSource are the statuses of package http, by name, that the package's source mentions. The client compares with
// http.StatusBadRequest and http.StatusSwitchingProtocols, which the server sends, too.
func statusesInSource(t *testing.T) map[string]int {
	t.Helper()
	values := map[string]int{
		"StatusSwitchingProtocols": 101, "StatusOK": 200, "StatusCreated": 201, "StatusBadRequest": 400, "StatusForbidden": 403,
		"StatusNotFound": 404, "StatusMethodNotAllowed": 405, "StatusConflict": 409, "StatusRequestEntityTooLarge": 413,
		"StatusTooManyRequests": 429, "StatusInternalServerError": 500, "StatusServiceUnavailable": 503,
	}
	found := map[string]int{}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		syntax, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(syntax, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok || !strings.HasPrefix(sel.Sel.Name, "Status") {
				return true
			}
			if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Name == "http" {
				value, known := values[sel.Sel.Name]
				if !known {
					t.Errorf("%s: http.%s is not in this test's table", name, sel.Sel.Name)
				}
				found[sel.Sel.Name] = value
			}
			return true
		})
	}
	return found
}

// TestOnlyOneFileKnowsTheRecord: the wire types do not depend on what is stored on disk.
func TestOnlyOneFileKnowsTheRecord(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		syntax, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range syntax.Imports {
			if spec.Path.Value == `"rootlessnet/internal/state"` && name != "record.go" && name != "record_test.go" {
				t.Errorf("%s imports internal/state", name)
			}
		}
	}
}
