package userns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestExecIn(t *testing.T) {
	for _, pidns := range []bool{false, true} {
		for _, ids := range []IDMap{IDMapRoot, IDMapKeepID, IDMapAuto} {
			s := start(t, Config{Network: NetworkNone, IDMap: ids, PIDNamespace: pidns,
				Files: Files{Hostname: "target", Hosts: []byte("1.1.1.1 here\n")}})
			mark := uniqueSleep()
			if _, err := s.Run(Command{Argv: []string{"sleep", mark}}); err != nil {
				t.Fatal(err)
			}
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			code, err := ExecIn(t.Context(), s.InitPID(), Command{Stdout: w, Stderr: w, Dir: "/etc",
				Argv: []string{"sh", "-c", "uname -n; id -u; cat hosts; readlink /proc/self/ns/net; ls /proc/self/fd | wc -l; sleep " + mark + " & exit 4"}})
			w.Close()
			out, _ := io.ReadAll(r)
			r.Close()
			uid := 0
			if ids == IDMapKeepID {
				uid = os.Getuid()
			}
			want := fmt.Sprintf("target\n%d\n1.1.1.1 here\nnet:[%d]\n4\n", uid, s.NetNS())
			if code != 4 || err != nil || string(out) != want {
				t.Errorf("%s, pidns %v: %d, %v, %q, want %q", ids, pidns, code, err, out, want)
			}
			waitSleepers(t, mark, 1, 0) // the target's own
			code, err = ExecIn(t.Context(), s.InitPID(), Command{Argv: []string{"no-such-command"}})
			var ee *ExecError
			if code != 127 || !errors.As(err, &ee) {
				t.Errorf("%d, %v", code, err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			if code, err = ExecIn(ctx, s.InitPID(), Command{Argv: []string{"sleep", mark}}); code != CodeFailure || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("cancelled: %d, %v", code, err)
			}
			cancel()
			waitSleepers(t, mark, 1, 0)
			s.Close()
		}
	}
	if _, err := ExecIn(t.Context(), 1<<22-1, Command{Argv: []string{"true"}}); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("no such process: %v", err)
	}
}

// TestJoin: a sandbox that joins another has the network and the files of its target, and outlives it.
func TestJoin(t *testing.T) {
	for _, pidns := range []bool{false, true} {
		for _, own := range []bool{false, true} {
			target := start(t, Config{Network: NetworkNone, PIDNamespace: pidns,
				Files: Files{ResolvConf: []byte("nameserver 10.0.2.3\n"), Hostname: "target"}})
			if _, err := target.Run(Command{Argv: []string{"sleep", "100"}}); err != nil {
				t.Fatal(err)
			}
			inode := target.NetNS()
			s, err := Start(t.Context(), Config{Network: NetworkJoin, JoinPID: target.InitPID(), PIDNamespace: own})
			if err != nil {
				t.Errorf("target pidns %v, own %v: %v", pidns, own, err)
				continue
			}
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := target.UpdateFiles(Files{ResolvConf: []byte("nameserver 8.8.8.8\n")}); err != nil {
				t.Error(err)
			}
			target.Close()
			pid, err := s.Run(Command{Stdout: w, Stderr: w, Argv: []string{"sh", "-c", "id -u; uname -n; cat /etc/resolv.conf; readlink /proc/self/ns/net; cat /proc/$$/comm; ls /proc | grep -c '^[0-9]'; sleep 0.1"}})
			w.Close()
			if err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err != nil || string(b) != "sh\n" {
				t.Errorf("pid %d is %q, %v", pid, b, err)
			}
			out, _ := io.ReadAll(r)
			r.Close()
			if len(out) == 0 {
				t.Fatal("no output")
			}
			want := fmt.Sprintf("0\ntarget\nnameserver 8.8.8.8\nnet:[%d]\nsh\n", inode)
			if !strings.HasPrefix(string(out), want) {
				t.Errorf("target pidns %v, own %v: %q, want %q", pidns, own, out, want)
			}
			f := strings.Fields(string(out))
			n, _ := strconv.Atoi(f[len(f)-1])
			few := n <= 4 // init, sh, ls and grep at most; the machine has more
			if own != few {
				t.Errorf("own pid namespace %v: processes seen: %q", own, out)
			}
			if code, err := s.Wait(); code != 0 || err != nil {
				t.Errorf("%d, %v", code, err)
			}
			s.Close()
		}
	}
}
