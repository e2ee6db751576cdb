package doctor

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// WriteText writes the report as text: a line for each check, and below those that failed what does not work and the command that
// fixes it.
func (r Report) WriteText(w io.Writer) error {
	var b strings.Builder
	group, width, failed, warned := "", 0, 0, 0
	for _, c := range r.Checks {
		width = max(width, len(c.Name))
	}
	for _, c := range r.Checks {
		if c.Group != group {
			if group != "" {
				b.WriteByte('\n')
			}
			group = c.Group
			b.WriteString(group + "\n")
		}
		mark := "ok  "
		switch {
		case c.Status == OK:
		case c.Level == Required:
			mark = "FAIL"
			failed++
		default:
			mark = "warn"
			warned++
		}
		if c.Status == OK {
			fmt.Fprintf(&b, "  %s  %-*s  %s\n", mark, width, c.Name, c.Detail)
			continue
		}
		fmt.Fprintf(&b, "  %s  %-*s  %s: %s\n", mark, width, c.Name, c.Status, c.Detail)
		if c.Status == Untried {
			continue // the check that it depends on has the fix
		}
		fmt.Fprintf(&b, "        %-*s  lost: %s\n", width, "", c.Lost)
		fmt.Fprintf(&b, "        %-*s  fix:  %s\n", width, "", c.Fix)
	}
	switch {
	case failed > 0:
		fmt.Fprintf(&b, "\n%d required missing, %d optional missing: sandboxes will not work here.\n", failed, warned)
	case warned > 0:
		fmt.Fprintf(&b, "\nEverything required works; %d optional missing.\n", warned)
	default:
		b.WriteString("\nEverything works.\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// WriteJSON writes the report as one indented object.
func (r Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(r)
}
