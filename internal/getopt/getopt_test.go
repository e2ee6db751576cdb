package getopt

import (
	"slices"
	"testing"
)

var testOptions = []Option{
	{Name: "configure", Char: 'c'},
	{Name: "exit-fd", Char: 'e', Arg: Required},
	{Name: "ready-fd", Char: 'r', Arg: Required},
	{Name: "enable-sandbox"},
	{Name: "create-sandbox", Key: "enable-sandbox"},
	{Name: "enable-seccomp"},
	{Name: "enable-ipv6", Char: '6'},
	{Name: "outbound-addr", Arg: Required},
	{Name: "outbound-addr6", Arg: Required},
	{Name: "level", Char: 'l', Arg: Optional},
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		name     string
		mode     Mode
		args     []string
		found    []Found
		operands []string
		err      string
	}{
		{name: "nothing"},
		{
			name: "options after operands", args: []string{"123", "-c", "tap0", "--ready-fd", "4", "--exit-fd=3"},
			found:    []Found{{"configure", ""}, {"ready-fd", "4"}, {"exit-fd", "3"}},
			operands: []string{"123", "tap0"},
		},
		{
			name: "the first operand ends the options", mode: Strict, args: []string{"-c", "ls", "-l", "--", "x"},
			found: []Found{{"configure", ""}}, operands: []string{"ls", "-l", "--", "x"},
		},
		{name: "clusters", args: []string{"-c6e3", "-ce", "5"}, found: []Found{{"configure", ""}, {"enable-ipv6", ""}, {"exit-fd", "3"}, {"configure", ""}, {"exit-fd", "5"}}},
		{name: "abbreviated", args: []string{"--conf", "--read=4", "--enable-sa"}, found: []Found{{"configure", ""}, {"ready-fd", "4"}, {"enable-sandbox", ""}}},
		{name: "the whole name beats a longer one", args: []string{"--outbound-addr", "1.2.3.4"}, found: []Found{{"outbound-addr", "1.2.3.4"}}},
		{name: "an alias", args: []string{"--create-sandbox"}, found: []Found{{"enable-sandbox", ""}}},
		{name: "end of options", args: []string{"-c", "--", "-x", "--y"}, found: []Found{{"configure", ""}}, operands: []string{"-x", "--y"}},
		{name: "a dash is an operand", args: []string{"-"}, operands: []string{"-"}},
		{name: "a value that looks like an option", args: []string{"--exit-fd", "-c"}, found: []Found{{"exit-fd", "-c"}}},
		{name: "an optional value", args: []string{"-l", "-l3", "--level", "--level=4"}, found: []Found{{"level", ""}, {"level", "3"}, {"level", ""}, {"level", "4"}}},
		{name: "unknown", args: []string{"-c", "--bogus=1"}, found: []Found{{"configure", ""}}, err: "prog: unrecognized option '--bogus=1'"},
		{name: "unknown short", args: []string{"-cz"}, found: []Found{{"configure", ""}}, err: "prog: invalid option -- 'z'"},
		{name: "ambiguous", args: []string{"--enable-s"}, err: "prog: option '--enable-s' is ambiguous; possibilities: '--enable-sandbox' '--enable-seccomp'"},
		{name: "no value", args: []string{"--exit-fd"}, err: "prog: option '--exit-fd' requires an argument"},
		{name: "no value, short", args: []string{"-e"}, err: "prog: option requires an argument -- 'e'"},
		{name: "a value too many", args: []string{"--configure=3"}, err: "prog: option '--configure' doesn't allow an argument"},
	} {
		t.Run(c.name, func(t *testing.T) {
			found, operands, err := Parse("prog", testOptions, c.mode, c.args)
			text := ""
			if err != nil {
				text = err.Error()
			}
			if text != c.err {
				t.Fatalf("error %q, want %q", text, c.err)
			}
			if !slices.Equal(found, c.found) || !slices.Equal(operands, c.operands) {
				t.Errorf("got %v %q, want %v %q", found, operands, c.found, c.operands)
			}
		})
	}
}
