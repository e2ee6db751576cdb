package api

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"rootlessnet/internal/state"
)

// Fields that only the record or only the wire type has, by their names in JSON. "ports" is in both: as text in the record, as
// objects on the wire.
var (
	onlyInRecord  = []string{"ports"}
	onlyInSandbox = []string{"ports", "members", "publishAll", "hostLoopback", "dns", "stateDir"}
)

// TestSandboxFromRecord sets every field of a record and compares what is stored with what is sent. A field that is added to
// one of the two types fails the test until it is added to the other and converted, or is listed above.
func TestSandboxFromRecord(t *testing.T) {
	var record state.Record
	fillIn(t, "record", reflect.ValueOf(&record).Elem())
	stored, sent := jsonObject(t, record), jsonObject(t, SandboxFromRecord(record))
	for name := range jsonFields(reflect.TypeFor[Sandbox]()) {
		if _, ok := sent[name]; !ok {
			sent[name] = nil // omitted when it is zero
		}
	}
	for _, name := range onlyInRecord {
		delete(stored, name)
	}
	for _, name := range onlyInSandbox {
		delete(sent, name)
	}
	for name, want := range stored {
		if got, ok := sent[name]; !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: stored as %v, sent as %v (%v)", name, want, got, ok)
		}
	}
	for name := range sent {
		if _, ok := stored[name]; !ok {
			t.Errorf("%s is sent, but not stored", name)
		}
	}
}

// TestStatusesOfTheRecord: a status has the same text on disk and on the wire.
func TestStatusesOfTheRecord(t *testing.T) {
	for stored, sent := range map[state.Status]Status{
		state.Created: StatusCreated, state.Running: StatusRunning, state.Lingering: StatusLingering,
	} {
		if got := SandboxFromRecord(state.Record{Status: stored}).Status; got != sent {
			t.Errorf("%q is sent as %q, want %q", stored, got, sent)
		}
	}
}

// TestSandboxRoundTrip sets every field of the wire type and decodes what was encoded.
func TestSandboxRoundTrip(t *testing.T) {
	var want, got Sandbox
	fillIn(t, "sandbox", reflect.ValueOf(&want).Elem())
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v: sent %+v, received %+v", err, want, got)
	}
}

func jsonObject(t *testing.T, v any) map[string]any {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var object map[string]any
	if err := json.Unmarshal(text, &object); err != nil {
		t.Fatal(err)
	}
	return object
}

// texts are values of the types that encoding/json writes as text.
var texts = map[string]string{"netip.Addr": "192.0.2.1", "netip.Prefix": "192.0.2.0/24"}

// fillIn sets v and all that it holds to values that are not zero.
func fillIn(t *testing.T, where string, v reflect.Value) {
	t.Helper()
	if v.Type() == reflect.TypeFor[time.Time]() {
		v.Set(reflect.ValueOf(time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)))
		return
	}
	if text, ok := texts[v.Type().String()]; ok {
		if err := json.Unmarshal([]byte(`"`+text+`"`), v.Addr().Interface()); err != nil {
			t.Fatal(err)
		}
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString("text of " + where)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int:
		v.SetInt(int64(len(where)))
	case reflect.Uint16, reflect.Uint64:
		v.SetUint(uint64(len(where)))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fillIn(t, where, v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fillIn(t, where, v.Index(0))
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fillIn(t, where+" key", key)
		fillIn(t, where, value)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.Struct:
		for i := range v.NumField() {
			fillIn(t, where+"."+v.Type().Field(i).Name, v.Field(i))
		}
	default:
		t.Fatalf("%s: no value for %v", where, v.Type())
	}
}
