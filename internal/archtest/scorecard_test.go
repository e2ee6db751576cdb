package archtest_test

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const scorecardFile = "docs/scorecard.md"

var (
	testFunc  = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	testName  = regexp.MustCompile("`((?:Test|Fuzz)\\w+)`")
	cardLine  = regexp.MustCompile(`(?m)^\| (\d+) \|`)
	ofTheCard = regexp.MustCompile(`^TestScorecard(\d\d)[A-Z]`)
)

// TestScorecardNamesItsTests: every TestScorecardNN of the code is named in docs/scorecard.md, which names no test that does
// not exist, and has every line once.
func TestScorecardNamesItsTests(t *testing.T) {
	root := filepath.Join("..", "..")
	defined := map[string]string{} // the file of each test
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && slices.Contains([]string{".git", "bin", "build", "tools"}, d.Name()) {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(path)
		for _, m := range testFunc.FindAllSubmatch(text, -1) {
			defined[string(m[1])] = path
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, scorecardFile))
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for _, m := range testName.FindAllSubmatch(text, -1) {
		named[string(m[1])] = true
	}
	var lines []string
	for _, m := range cardLine.FindAllSubmatch(text, -1) {
		lines = append(lines, string(m[1]))
	}
	for name := range named {
		if defined[name] == "" {
			t.Errorf("%s names %s, which does not exist", scorecardFile, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(defined)) {
		m := ofTheCard.FindStringSubmatch(name)
		switch {
		case m == nil && strings.HasPrefix(name, "TestScorecard") && name != "TestScorecardNamesItsTests":
			t.Errorf("%s: %s has no number of two digits", defined[name], name)
		case m == nil:
		case !named[name]:
			t.Errorf("%s: %s is not named in %s", defined[name], name, scorecardFile)
		case !slices.Contains(lines, strings.TrimLeft(m[1], "0")):
			t.Errorf("%s has no line %s, of which %s is the test", scorecardFile, m[1], name)
		}
	}
	for i, line := range lines {
		if slices.Contains(lines[:i], line) {
			t.Errorf("%s has two lines %s", scorecardFile, line)
		}
	}
}
