package state

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

// storedRecord is a state.json with every field. Programs of other versions read the file, so an existing line must not change.
const storedRecord = `{
  "id": "abababababababababababababababababababababababababababababababab",
  "name": "web",
  "created": "2026-01-02T03:04:05.000000006Z",
  "status": "lingering",
  "supervisor": {
    "pid": 4711,
    "startTime": 123456
  },
  "initPid": 4712,
  "exitCode": 7,
  "command": [
    "sleep",
    "60"
  ],
  "labels": {
    "tier": "front"
  },
  "network": "bridge",
  "hostname": "web",
  "netns": 4026532281,
  "interface": "eth0",
  "link": "tap",
  "datapath": "splice",
  "mac": "02:42:0a:00:02:64",
  "mtu": 65520,
  "subnets": [
    "10.0.2.0/24"
  ],
  "gateways": [
    "10.0.2.2"
  ],
  "addresses": [
    "10.0.2.100"
  ],
  "ports": [
    "0.0.0.0:8080-\u003e80/tcp"
  ]
}
`

// TestStoredFormat compares the text of a record, and the record that is read from the text.
func TestStoredFormat(t *testing.T) {
	code := 7
	record := Record{
		ID:   "abababababababababababababababababababababababababababababababab",
		Name: "web", Created: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Status: Lingering,
		Supervisor: Process{PID: 4711, StartTime: 123456}, InitPID: 4712, ExitCode: &code, Command: []string{"sleep", "60"},
		Labels:  map[string]string{"tier": "front"},
		Network: "bridge", Hostname: "web", NetNS: 4026532281,
		Interface: "eth0", Link: "tap", Datapath: "splice", MAC: "02:42:0a:00:02:64", MTU: 65520,
		Subnets:   []netip.Prefix{netip.MustParsePrefix("10.0.2.0/24")},
		Gateways:  []netip.Addr{netip.MustParseAddr("10.0.2.2")},
		Addresses: []netip.Addr{netip.MustParseAddr("10.0.2.100")},
		Ports:     []string{"0.0.0.0:8080->80/tcp"},
	}
	fields := reflect.ValueOf(record)
	for i := range fields.NumField() {
		if fields.Field(i).IsZero() {
			t.Errorf("the test leaves %s unset", fields.Type().Field(i).Name)
		}
	}
	dir := t.TempDir()
	if err := writeRecord(dir, &record); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, recordFile)); err != nil || string(text) != storedRecord {
		t.Errorf("%v, stored\n%swant\n%s", err, text, storedRecord)
	}
	if got, err := readRecord(dir); err != nil || !reflect.DeepEqual(got, record) {
		t.Errorf("%v, read %+v, want %+v", err, got, record)
	}
}
