package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/template"

	"github.com/spf13/cobra"
)

// templateFuncs are the functions that docker's templates have.
var templateFuncs = template.FuncMap{
	"json": func(v any) (string, error) {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		err := e.Encode(v)
		return strings.TrimSpace(b.String()), err
	},
	"split": strings.Split,
	"join":  strings.Join,
	"lower": strings.ToLower,
	"upper": strings.ToUpper,
	"title": func(s string) string {
		if s == "" {
			return s
		}
		return strings.ToUpper(s[:1]) + s[1:]
	},
	"pad": func(s string, before, after int) string {
		if s == "" {
			return s
		}
		return strings.Repeat(" ", max(before, 0)) + s + strings.Repeat(" ", max(after, 0))
	},
	"truncate": func(s string, n int) string {
		if r := []rune(s); n >= 0 && len(r) > n {
			return string(r[:n])
		}
		return s
	},
	"println": func(v ...any) string { return fmt.Sprintln(v...) },
}

// parseTemplate parses a Go template with docker's functions. "\t" and "\n" stand for the characters, because a shell does not
// make them of its single quotes.
func parseTemplate(text string) (*template.Template, error) {
	t, err := template.New("").Funcs(templateFuncs).Parse(strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(text))
	if err != nil {
		return nil, usageError{fmt.Errorf("template parsing error: %w", err)}
	}
	return t, nil
}

// format is the value of --format: a template for one line of output.
type format struct {
	template *template.Template // nil: the command's own table
	table    bool               // with a header
}

// parseFormat reads "table", "table TEMPLATE", "json" or TEMPLATE; the empty string is "table".
func parseFormat(text string) (format, error) {
	if text == "" || text == "table" {
		return format{table: true}, nil
	}
	rest, table := strings.CutPrefix(text, "table ")
	if text == "json" {
		rest = "{{json .}}"
	}
	t, err := parseTemplate(strings.TrimSpace(rest))
	return format{t, table}, err
}

// addFormat adds the flag --format to a command.
func addFormat(cmd *cobra.Command, into *string) {
	cmd.Flags().StringVar(into, "format", "", "\"table\", \"table `TEMPLATE`\", \"json\", or a Go template with the fields of docker's")
	cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
}

// printRows prints the rows by the format; header holds the titles of the columns in the fields of a row. f.template is not nil.
func printRows[T any](p *program, f format, header T, rows []T) error {
	var out io.Writer = p.stdout
	if f.table {
		w := p.table()
		defer w.Flush()
		out, rows = w, append([]T{header}, rows...)
	}
	for _, row := range rows {
		if err := printRow(out, f.template, row); err != nil {
			return err
		}
	}
	return nil
}

func printRow(out io.Writer, t *template.Template, row any) error {
	var line bytes.Buffer
	if err := t.Execute(&line, row); err != nil {
		return usageError{err}
	}
	line.WriteByte('\n')
	_, err := out.Write(line.Bytes())
	return err
}
