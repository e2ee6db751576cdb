package guest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestEveryOperationIsInTheTable: each type with a method run can be requested.
func TestEveryOperationIsInTheTable(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Recv == nil || f.Name.Name != "run" {
				continue
			}
			found++
			if name := f.Recv.List[0].Type.(*ast.Ident).Name; operations[name] == nil {
				t.Errorf("the operation %s is missing from operations.go", name)
			}
		}
	}
	if found != len(operations) {
		t.Errorf("%d operations are defined, %d are in the table", found, len(operations))
	}
}

// TestAgent runs operations through the agent, with arguments and results that are not trivial.
func TestAgent(t *testing.T) {
	in, requests := io.Pipe()
	replies, out := io.Pipe()
	go func() {
		agent(in, out)
		out.Close()
	}()
	a := NewAgent(requests, replies)
	if err := a.AwaitReady(); err != nil {
		t.Fatal(err)
	}
	serve := ServeTCP{Server: Echo, Addr: netip.MustParseAddr("127.0.0.1")}
	addr, err := Do(a, serve)
	if err != nil || addr.Addr() != serve.Addr || addr.Port() == 0 {
		t.Fatalf("ServeTCP: %v, %v", addr, err)
	}
	exchange := Exchange{To: To(addr), Text: "several words\nand lines", Socket: Socket{Timeout: time.Second}}
	got, err := Do(a, exchange)
	if err != nil || got.Outcome != OK || got.Client.Addr() != serve.Addr || got.Text != exchange.Text {
		t.Errorf("Exchange: %+v, %v", got, err)
	}
	read := ReadFile{Path: "/nonexistent"}
	if got, err := Do(a, read); err != nil || got.Outcome != NotFound {
		t.Errorf("ReadFile: %+v, %v", got, err)
	}
	for line, want := range map[string]string{
		`{"Operation":"Nonsense"}`:                      "no operation called",
		`{"Operation":"Connect","Arguments":{"Too":1}}`: "unknown field",
		`not JSON`: "invalid character",
	} {
		if _, err := io.WriteString(requests, line+"\n"); err != nil {
			t.Fatal(err)
		}
		reply, err := a.line()
		if err == nil {
			_, err = Decode(Sleep{}, reply)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", line, err, want)
		}
	}
	a.CloseInput()
	a.Drain()
	if _, err := Do(a, Sleep{}); err == nil {
		t.Error("an operation after the end of the agent")
	}
}
