package resolvconf

import (
	"fmt"
	"testing"
)

func TestParse(t *testing.T) {
	for in, want := range map[string]string{
		"": "{[] [] []}",
		"# text\nnameserver 192.0.2.53\nnameserver\t::ffff:192.0.2.54 # mapped\nnameserver fe80::1%eth0\nnameserver x\n nameserver 192.0.2.9\n": "{[192.0.2.53 192.0.2.54 fe80::1%eth0] [] []}",
		"search a b\ndomain c d\n":                        "{[] [c] []}",
		"domain c\nsearch a b\n":                          "{[] [a b] []}",
		"options rotate\noptions ndots:2 edns0\nsearch\n": "{[] [] [rotate ndots:2 edns0]}",
	} {
		if got := fmt.Sprint(Parse([]byte(in))); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("nameserver ::1\nsearch a b;c\noptions x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, a := range Parse(b).Servers {
			if !a.IsValid() || a.Is4In6() {
				t.Errorf("server %v", a)
			}
		}
	})
}
