package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

// dropIns are the programs that replace others of the same name.
var dropIns = []string{"slirp4netns", "pasta", "rootlessport"}

// dropInDirs are the directories of these programs, relative to that of rootless-net: the same directory after make build, and
// another one after make install, because they must not be in PATH.
var dropInDirs = []string{".", "../libexec/rootlessnet"}

func (p *program) dropInCommand() *cobra.Command {
	group := &cobra.Command{
		Use:   "drop-in",
		Short: "Replace slirp4netns and pasta for Podman, Buildah and RootlessKit",
		Args:  exactly(0),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	group.AddCommand(&cobra.Command{
		Use:   "install DIR",
		Short: "Install slirp4netns, pasta and rootlessport in a directory, and print the settings for containers.conf",
		Args:  exactly(1),
		RunE:  func(_ *cobra.Command, args []string) error { return p.installDropIns(args[0]) },
	})
	return group
}

// installDropIns copies the programs to dir and prints how to configure their callers.
func (p *program) installDropIns(dir string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, name := range dropIns {
		from, err := findDropIn(filepath.Dir(self), name)
		if err != nil {
			return err
		}
		if err := installFile(filepath.Join(dir, name), from); err != nil {
			return fmt.Errorf("install %s: %w", name, err)
		}
	}
	_, err = fmt.Fprintf(p.stdout, `Podman: in ~/.config/containers/containers.conf
    [engine]
    network_cmd_path = %q
    helper_binaries_dir = [%q, "/usr/local/libexec/podman", "/usr/libexec/podman", "/usr/local/lib/podman", "/usr/lib/podman"]
Buildah: PATH=%s:$PATH
RootlessKit: --slirp4netns-binary=%s or --pasta-binary=%s
`, filepath.Join(dir, "slirp4netns"), dir, dir, filepath.Join(dir, "slirp4netns"), filepath.Join(dir, "pasta"))
	return err
}

// findDropIn returns the path of a program. from is the directory of rootless-net.
func findDropIn(from, name string) (string, error) {
	for _, dir := range dropInDirs {
		path := filepath.Join(from, dir, name)
		if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is neither in %s nor in %s", name, from, filepath.Join(from, dropInDirs[1]))
}

// installFile copies a program by rename(2), because the one it replaces may be running.
func installFile(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if old, err := os.Stat(to); err == nil {
		if fi, err := in.Stat(); err == nil && os.SameFile(old, fi) {
			return nil // from is already installed at to
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	out, err := os.CreateTemp(filepath.Dir(to), filepath.Base(to)+".")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(out.Name())
		}
	}()
	_, err = io.Copy(out, in)
	if err == nil {
		err = out.Chmod(0o755)
	}
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(out.Name(), to)
}
