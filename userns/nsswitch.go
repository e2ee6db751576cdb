package userns

import (
	"bytes"
	"strings"
)

// filterNsswitch removes from the hosts line of nsswitch.conf(5) the services that query daemons of the host instead of the name
// servers of resolv.conf: resolve, mymachines and mdns*, each with its action in brackets. Everything else stays byte by byte;
// changed reports whether anything was removed. A changed hosts line without files or dns gets what is missing.
func filterNsswitch(text []byte) (out []byte, changed bool) {
	lines := bytes.SplitAfter(text, []byte("\n"))
	for _, line := range lines {
		if new, ok := filterHostsLine(string(line)); ok {
			out = append(out, new...)
			changed = true
			continue
		}
		out = append(out, line...)
	}
	return out, changed
}

func filterHostsLine(line string) (string, bool) {
	body, comment, hasComment := strings.Cut(strings.TrimRight(line, "\r\n"), "#")
	db, services, ok := strings.Cut(body, ":")
	if !ok || strings.TrimSpace(db) != "hosts" {
		return "", false
	}
	var keep []string
	dropped, skipAction := false, false
	have := make(map[string]bool)
	for _, f := range splitServices(services) {
		if strings.HasPrefix(f, "[") {
			if !skipAction {
				keep = append(keep, f)
			}
			continue
		}
		skipAction = queriesHost(f)
		if skipAction {
			dropped = true
			continue
		}
		have[f] = true
		keep = append(keep, f)
	}
	if !dropped {
		return "", false
	}
	if !have["files"] {
		keep = append([]string{"files"}, keep...)
	}
	if !have["dns"] {
		keep = append(keep, "dns")
	}
	new := db + ": " + strings.Join(keep, " ")
	if hasComment {
		new += " #" + comment
	}
	return new + line[len(strings.TrimRight(line, "\r\n")):], true
}

// splitServices splits at blanks, but not inside an action ("[!UNAVAIL=return SUCCESS=continue]"). Brackets need no blanks
// around them.
func splitServices(s string) []string {
	var out []string
	for {
		s = strings.TrimLeft(s, " \t")
		if s == "" {
			return out
		}
		end := strings.IndexAny(s, " \t[")
		if s[0] == '[' {
			if end = strings.IndexByte(s, ']'); end >= 0 {
				end++
			}
		}
		if end < 0 {
			end = len(s)
		}
		out = append(out, s[:end])
		s = s[end:]
	}
}

// queriesHost reports whether an NSS service reaches a daemon outside the sandbox, by a socket or by D-Bus.
func queriesHost(service string) bool {
	return service == "resolve" || service == "mymachines" || strings.HasPrefix(service, "mdns")
}
