package dns

import (
	"io"
	"os"
	"syscall"
	"time"
)

// fileState tells one content of a path from the next: an edit in place changes ctime, a replacement (by rename, or of
// the symlink's target) the inode. The zero value is "there is no such file".
type fileState struct {
	dev, ino, mode uint64
	size           int64
	mtime, ctime   syscall.Timespec
}

func stat(path string) fileState {
	fi, err := os.Stat(path)
	if err != nil {
		return fileState{}
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return fileState{}
	}
	return fileState{dev: uint64(st.Dev), ino: st.Ino, mode: uint64(st.Mode), size: st.Size, mtime: st.Mtim, ctime: st.Ctim}
}

// readFile reads a regular file; O_NONBLOCK, so that a FIFO put in its place holds up nobody.
func readFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, &os.PathError{Op: "read", Path: path, Err: syscall.EINVAL}
	}
	return io.ReadAll(io.LimitReader(f, maxResolvConf))
}

// load reads the host's file and lays the Config's overrides over it. A file that is not there is an empty one.
func (r *Resolver) load() *hostConfig {
	file, err := readFile(r.path)
	if err != nil {
		r.log.Warn("resolv.conf cannot be read", "path", r.path, "err", err)
	}
	c := parseResolvConf(file)
	if len(r.cfg.Upstreams) > 0 {
		c.servers = r.cfg.Upstreams
	}
	if len(r.cfg.Search) > 0 {
		c.search = r.cfg.Search
	}
	if len(r.cfg.Options) > 0 {
		c.options = r.cfg.Options
	}
	return c
}

// watch follows the host's file until the resolver is closed. It polls: a chain of symlinks that are replaced one by one
// (systemd-resolved, NetworkManager, resolvconf) needs many inotify watches and still leaves gaps, and one stat a second
// costs a microsecond.
func (r *Resolver) watch(last fileState) {
	defer r.wg.Done()
	tick := time.NewTicker(r.time.poll)
	defer tick.Stop()
	empty := false
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-tick.C:
		}
		now := stat(r.path)
		same := now == last
		if same && !empty {
			continue
		}
		last = now
		c := r.load()
		// A file being written in place is empty for a moment. Believe one without servers when it stays so.
		if empty = len(c.servers) == 0 && !same; empty {
			continue
		}
		r.install(c)
	}
}

// install makes c the configuration from now on, and tells if it is another than before.
func (r *Resolver) install(c *hostConfig) {
	if len(c.servers) == 0 {
		c.servers = append(c.servers, localServer)
	}
	if old := r.current.Swap(c); old == nil || old.equal(c) {
		return
	}
	r.stats.reloads.Add(1)
	r.log.Info("host's resolv.conf changed", "servers", c.servers, "search", c.search)
	select {
	case r.changed <- struct{}{}:
	default: // one is waiting already, and says the same
	}
}

// Changed has a value each time the host's configuration became another; several changes may make one value. It is
// never closed.
func (r *Resolver) Changed() <-chan struct{} { return r.changed }
