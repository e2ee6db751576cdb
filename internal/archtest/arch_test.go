package archtest_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "rootlessnet"

// maxLines is the length of a file above which it almost certainly has more than one subject.
const maxLines = 600

// file is one Go source file; dir is relative to the module's root, "." for the root itself.
type file struct {
	dir, name string
	test      bool
	lines     int
	imports   []string // import paths; ours relative to the module, with the root as "."
	syntax    *ast.File
}

func sources(t *testing.T) []file {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Fatalf("not the module's root: %v", err)
	}
	var files []file
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if rel != "." && (strings.HasPrefix(d.Name(), ".") || slices.Contains([]string{"bin", "build", "tools", "testdata"}, d.Name())) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		f, err := parse(root, rel)
		files = append(files, f)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 20 {
		t.Fatalf("found only %d files below %s", len(files), root)
	}
	return files
}

func parse(root, rel string) (file, error) {
	text, err := os.ReadFile(filepath.Join(root, rel))
	if err != nil {
		return file{}, err
	}
	syntax, err := parser.ParseFile(token.NewFileSet(), rel, text, 0)
	if err != nil {
		return file{}, err
	}
	f := file{
		dir: filepath.ToSlash(filepath.Dir(rel)), name: filepath.ToSlash(rel), test: strings.HasSuffix(rel, "_test.go"),
		lines: strings.Count(string(text), "\n"), syntax: syntax,
	}
	for _, spec := range syntax.Imports {
		name, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return file{}, err
		}
		if name == module {
			name = "."
		}
		f.imports = append(f.imports, name)
	}
	return f, nil
}

// testOnly is the library that compares the control socket with its schema.
const testOnly = "github.com/getkin/kin-openapi"

func TestOnlyTestsImportTestHelpers(t *testing.T) {
	for _, f := range sources(t) {
		if f.test || top(f.dir) == "bench" || strings.HasPrefix(f.dir, "internal/nettest") || f.dir == "examples/demo" {
			continue
		}
		for _, imported := range f.imports {
			if imported == "testing" || strings.HasPrefix(imported, module+"/internal/nettest") || strings.HasPrefix(imported, testOnly) {
				t.Errorf("%s imports %s", f.name, imported)
			}
		}
	}
}

func TestEveryPackageHasDoc(t *testing.T) {
	documented := map[string]bool{}
	for _, f := range sources(t) {
		if f.test {
			continue
		}
		documented[f.dir] = documented[f.dir] || path.Base(f.name) == "doc.go" && f.syntax.Name != nil
	}
	for dir, ok := range documented {
		// An example is one file without doc.go.
		if !ok && top(dir) != "examples" {
			t.Errorf("%s has no doc.go", dir)
		}
	}
}

func TestFilesHoldOneSubject(t *testing.T) {
	for _, f := range sources(t) {
		if f.lines > maxLines {
			t.Errorf("%s has %d lines, more than %d", f.name, f.lines, maxLines)
		}
	}
}

// TestNoNetworkPrograms: networks are configured by netlink and system calls, not by programs that may be missing.
func TestNoNetworkPrograms(t *testing.T) {
	banned := []string{"ip", "iptables", "ip6tables", "iptables-nft", "nft", "tc", "nsenter", "sysctl", "ethtool", "brctl"}
	for _, f := range sources(t) {
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || !startsProgram(call) {
				return true
			}
			for _, arg := range call.Args {
				lit, ok := arg.(*ast.BasicLit)
				if !ok || lit.Kind != token.STRING {
					continue
				}
				if name, err := strconv.Unquote(lit.Value); err == nil {
					if slices.Contains(banned, path.Base(name)) {
						t.Errorf("%s runs %s", f.name, name)
					}
					break // the first literal is the program
				}
			}
			return true
		})
	}
}

// startsProgram recognises exec.Command, exec.CommandContext, exec.LookPath and os.StartProcess.
func startsProgram(call *ast.CallExpr) bool {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	pkg, ok := sel.X.(*ast.Ident)
	if !ok {
		return false
	}
	return slices.Contains([]string{"exec.Command", "exec.CommandContext", "exec.LookPath", "os.StartProcess"},
		pkg.Name+"."+sel.Sel.Name)
}
