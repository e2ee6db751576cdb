package dns

import (
	"io"
	"log/slog"
	"os"
	"syscall"
	"time"
)

// fileState identifies the content of a file: an edit in place changes ctime, a replacement (by rename, or of a symlink's
// target) the inode. The zero value means that the file does not exist.
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

// readFile reads a regular file, at most maxResolvConf bytes. O_NONBLOCK keeps open from blocking if the path is a FIFO.
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

// load reads the host's file and applies the overrides of Config. A missing file counts as empty.
func (r *Resolver) load() *hostConfig {
	file, err := readFile(r.path)
	if err != nil {
		level := slog.LevelWarn
		if len(r.cfg.Upstreams) > 0 {
			level = slog.LevelInfo // only the search list and the options are missing
		}
		r.log.Log(r.ctx, level, "the host's resolv.conf cannot be read; it is treated as empty", "path", r.path, "err", err)
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

// watch reloads the host's file when it changes, until the resolver is closed. It polls with stat, which takes a microsecond a
// second: inotify would need a watch for each link of a symlink chain (systemd-resolved, NetworkManager, resolvconf), and would
// still miss changes.
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
		// A file that is being rewritten in place is empty for a moment. One without servers is accepted only if the next check
		// finds it unchanged.
		if empty = len(c.servers) == 0 && !same; empty {
			continue
		}
		r.install(c)
	}
}

// install makes c the current configuration, and sends on r.changed if it differs from the previous one.
func (r *Resolver) install(c *hostConfig) {
	if len(c.servers) == 0 {
		c.servers = append(c.servers, localServer)
	}
	if old := r.current.Swap(c); old == nil || old.equal(c) {
		return
	}
	r.stats.reloads.Add(1)
	r.log.Info("the host's resolv.conf has changed; new queries use it", "servers", c.servers, "search", c.search)
	select {
	case r.changed <- struct{}{}:
	default: // a notification is pending already
	}
}

// Changed returns a channel that receives a value when the host's configuration has changed; one value may cover several
// changes. It is never closed.
func (r *Resolver) Changed() <-chan struct{} { return r.changed }
