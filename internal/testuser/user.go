package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"
)

const (
	// defaultUser is the account made when TEST_USER names none.
	defaultUser = "rootlessnet-test"
	// bareID is the uid and gid used where no account can be made: above what distributions give to people and
	// system users (60000 is their usual UID_MAX), below the 16-bit nobody.
	bareID = 60077
	// userLock serialises the making of the account between test binaries that start at the same time.
	userLock = "/run/rootlessnet-test.lock"
)

type testUser struct {
	name     string
	uid, gid uint32
}

func findUser() (testUser, error) {
	name := os.Getenv("TEST_USER")
	if name == "" {
		name = defaultUser
	}
	lock, err := os.OpenFile(userLock, os.O_RDWR|os.O_CREATE|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return testUser{}, err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return testUser{}, fmt.Errorf("lock %s: %w", userLock, err)
	}
	if u, err := user.Lookup(name); err == nil {
		return parseUser(u)
	}
	if _, err := exec.LookPath("useradd"); err == nil {
		// An ordinary account, not a system one: those get no subordinate ids.
		out, err := exec.Command("useradd", "--no-create-home", "--shell", "/bin/sh", name).CombinedOutput()
		if err != nil {
			return testUser{}, fmt.Errorf("useradd %s: %w: %s", name, err, out)
		}
		u, err := user.Lookup(name)
		if err != nil {
			return testUser{}, err
		}
		return parseUser(u)
	}
	fmt.Fprintf(os.Stderr, "testuser: no useradd: running as uid %d without an account\n", bareID)
	return testUser{name: strconv.Itoa(bareID), uid: bareID, gid: bareID}, nil
}

func parseUser(u *user.User) (testUser, error) {
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return testUser{}, fmt.Errorf("user %s: uid %q", u.Username, u.Uid)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return testUser{}, fmt.Errorf("user %s: gid %q", u.Username, u.Gid)
	}
	if uid == 0 {
		return testUser{}, fmt.Errorf("user %s is root", u.Username)
	}
	return testUser{name: u.Username, uid: uint32(uid), gid: uint32(gid)}, nil
}
