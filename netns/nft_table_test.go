package netns

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// TestTables: both nftables tables have the chains and sets that their documentation shows, no other netlink socket can delete
// them, and the kernel removes them with their descriptors.
func TestTables(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	l := testLink(t)
	setUp(t, l)
	r, h := redirectBy(t, l.Name, true)
	if err := r.AddForwarding(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]struct{ chains, sets []string }{
		redirectName: {[]string{"in", "out"}, []string{"nosocket4", "nosocket6", "stack4", "stack6"}},
		forwardName:  {[]string{"bridged", "deliver", "in", "nat", "out", "untracked"}, nil},
	} {
		c, err := nftables.New()
		if err != nil {
			t.Fatal(err)
		}
		table, err := c.ListTableOfFamily(name, nftables.TableFamilyINet)
		if err != nil {
			t.Fatal(err)
		}
		var chains, sets []string
		all, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
		if err != nil {
			t.Fatal(err)
		}
		for _, ch := range all {
			if ch.Table.Name == name {
				chains = append(chains, ch.Name)
			}
		}
		have, err := c.GetSets(table)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range have {
			sets = append(sets, s.Name)
		}
		slices.Sort(chains)
		slices.Sort(sets)
		if !slices.Equal(chains, want.chains) || !slices.Equal(sets, want.sets) {
			t.Errorf("%s: chains %q, sets %q", name, chains, sets)
		}
		c.DelTable(table)
		if err := c.Flush(); !errors.Is(err, unix.EPERM) {
			t.Errorf("%s is deleted by another socket: %v", name, err)
		}
	}
	closeHandles(h)
	r.Close()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	if tables, err := c.ListTables(); err != nil || len(tables) != 0 {
		t.Errorf("after the end: %d tables, %v", len(tables), err)
	}
}
