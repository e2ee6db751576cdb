package getopt

import (
	"fmt"
	"slices"
	"strings"
)

// Arg is whether an option takes a value.
type Arg int

// The three kinds of options.
const (
	None     Arg = iota // --name and -n only
	Required            // --name VALUE, --name=VALUE, -nVALUE
	Optional            // --name=VALUE and -nVALUE only
)

// Option is one option. Options with the same Key are aliases.
type Option struct {
	Name string // long name without dashes; empty if there is none
	Char byte   // short name; 0 if there is none
	Arg  Arg
	// Key is the key that Parse returns; empty means Name.
	Key string
}

func (o Option) key() string {
	if o.Key != "" {
		return o.Key
	}
	return o.Name
}

// Mode is how operands are treated.
type Mode int

// The two modes.
const (
	Permute Mode = iota // operands may be between options
	Strict              // the first operand ends the options
)

// Found is one option in a command line.
type Found struct {
	Key   string
	Value string
}

// Parse parses args, which does not include the program's name. program is the prefix of error texts. The options before an
// error are returned with it, for programs that act on options in order.
func Parse(program string, options []Option, mode Mode, args []string) (found []Found, operands []string, err error) {
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		switch {
		case arg == "--":
			return found, append(operands, args...), nil
		case strings.HasPrefix(arg, "--"):
			var f Found
			if f, args, err = long(options, arg[2:], args); err != nil {
				return found, nil, fmt.Errorf("%s: %w", program, err)
			}
			found = append(found, f)
		case len(arg) > 1 && arg[0] == '-':
			var list []Found
			list, args, err = cluster(options, arg[1:], args)
			found = append(found, list...)
			if err != nil {
				return found, nil, fmt.Errorf("%s: %w", program, err)
			}
		case mode == Strict:
			return found, append([]string{arg}, args...), nil
		default:
			operands = append(operands, arg)
		}
	}
	return found, operands, nil
}

// long parses one "--name[=value]", of which word is the part after the dashes.
func long(options []Option, word string, rest []string) (Found, []string, error) {
	name, value, hasValue := strings.Cut(word, "=")
	o, err := lookUp(options, name, word)
	if err != nil {
		return Found{}, rest, err
	}
	switch {
	case hasValue && o.Arg == None:
		return Found{}, rest, fmt.Errorf("option '--%s' doesn't allow an argument", o.Name)
	case !hasValue && o.Arg == Required:
		if len(rest) == 0 {
			return Found{}, rest, fmt.Errorf("option '--%s' requires an argument", o.Name)
		}
		value, rest = rest[0], rest[1:]
	}
	return Found{o.key(), value}, rest, nil
}

// lookUp returns the option with that name, or the only one with that prefix. Aliases count as one.
func lookUp(options []Option, name, word string) (Option, error) {
	var begins []Option
	for _, o := range options {
		switch {
		case o.Name == "":
		case o.Name == name:
			return o, nil
		case strings.HasPrefix(o.Name, name):
			begins = append(begins, o)
		}
	}
	switch {
	case len(begins) == 0:
		return Option{}, fmt.Errorf("unrecognized option '--%s'", word)
	case slices.ContainsFunc(begins, func(o Option) bool { return o.key() != begins[0].key() || o.Arg != begins[0].Arg }):
		var b strings.Builder
		for _, o := range begins {
			fmt.Fprintf(&b, " '--%s'", o.Name)
		}
		return Option{}, fmt.Errorf("option '--%s' is ambiguous; possibilities:%s", word, b.String())
	}
	return begins[0], nil
}

// cluster parses the "abcVALUE" of "-abcVALUE".
func cluster(options []Option, word string, rest []string) (found []Found, _ []string, err error) {
	for i := range len(word) {
		c := word[i]
		at := slices.IndexFunc(options, func(o Option) bool { return o.Char == c && c != 0 })
		if at < 0 {
			return found, rest, fmt.Errorf("invalid option -- '%c'", c)
		}
		o := options[at]
		if o.Arg == None {
			found = append(found, Found{Key: o.key()})
			continue
		}
		value := word[i+1:]
		if value == "" && o.Arg == Required {
			if len(rest) == 0 {
				return found, rest, fmt.Errorf("option requires an argument -- '%c'", c)
			}
			value, rest = rest[0], rest[1:]
		}
		return append(found, Found{o.key(), value}), rest, nil
	}
	return found, rest, nil
}
