package guest

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Main runs a guest operation and exits when the program was started for one; otherwise it returns.
func Main() {
	if len(os.Args) < 3 || os.Args[1] != "guest" {
		return
	}
	if os.Args[2] == "agent" {
		agent()
		os.Exit(0)
	}
	result, err := do(os.Args[2:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
	fmt.Println(result)
	if background[os.Args[2]] {
		select {} // until a signal ends us
	}
	os.Exit(0)
}

func agent() {
	out := bufio.NewWriter(os.Stdout)
	fmt.Fprintln(out, "ok agent")
	out.Flush()
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		result, err := do(strings.Fields(lines.Text()))
		if err != nil {
			fmt.Fprintln(out, "err", err)
		} else {
			fmt.Fprintln(out, "ok", result)
		}
		out.Flush()
	}
}

type operation func(args []string) (string, error)

// background are the operations that leave something running.
var background = map[string]bool{
	"serve-tcp": true, "serve-udp": true, "serve-half": true, "serve-rst": true, "ignore": true, "hold": true, "sleep": true,
}

func operations() map[string]operation {
	return map[string]operation{
		"serve-tcp":    serveTCP,
		"serve-udp":    serveUDP,
		"serve-rst":    serveRST,
		"serve-half":   serveHalf,
		"connect":      connect,
		"reset":        awaitReset,
		"exchange":     exchange,
		"half":         halfClose,
		"udp":          udp,
		"udp-burst":    udpBurst,
		"udp-trains":   udpTrains,
		"hold":         hold,
		"hold-echo":    holdEcho,
		"drop-held":    dropHeld,
		"ping":         ping,
		"dns":          query,
		"dhcp":         dhcp,
		"raw-tcp":      rawTCP,
		"raw-syns":     rawSYNs,
		"dial-many":    dialMany,
		"churn":        churn,
		"raw-udp":      rawUDP,
		"raw-short":    rawShort,
		"raw-bad":      rawBad,
		"raw-urg":      rawURG,
		"raw-lo":       rawLo,
		"exchange-as":  exchangeAs,
		"serve-as":     serveAs,
		"serve-silent": serveSilent,
		"fill":         fill,
		"serve-close":  serveClose,
		"close":        closeTogether,
		"serve-tell":   serveTell,
		"tell":         tell,
		"abort":        abort,
		"serve-urgent": serveUrgent,
		"urgent":       urgent,
		"nft-flush":    nftFlush,
		"nft-tables":   nftTables,
		"nft-input":    nftInput,
		"nft-mark":     nftMark,
		"policy-route": policyRoute,
		"bridge":       bridge,
		"cable":        cable,
		"address":      address,
		"unaddress":    unaddress,
		"unlink":       unlink,
		"join":         join,
		"believe":      believe,
		"masquerade":   masquerade,
		"fds":          fds,
		"ids":          ids,
		"links":        links,
		"netns":        netns,
		"read":         read,
		"hostname":     func([]string) (string, error) { return os.Hostname() },
		"getenv":       func(args []string) (string, error) { return os.Getenv(arg(args, 0, "")), nil },
		"connect-unix": connectUnix,
		"exit":         exit,
		"die":          die,
		"ignore":       ignore,
		"sleep":        func([]string) (string, error) { return strconv.Itoa(os.Getpid()), nil },
		"daemon":       daemon,
	}
}

func do(words []string) (string, error) {
	if len(words) == 0 {
		return "", errors.New("no operation")
	}
	op, ok := operations()[words[0]]
	if !ok {
		return "", fmt.Errorf("no operation called %q", words[0])
	}
	return op(words[1:])
}

// arg is args[i], or fallback when there are fewer.
func arg(args []string, i int, fallback string) string {
	if i < len(args) {
		return args[i]
	}
	return fallback
}

func number(args []string, i, fallback int) (int, error) {
	if i >= len(args) {
		return fallback, nil
	}
	return strconv.Atoi(args[i])
}

func duration(args []string, i int, fallback time.Duration) (time.Duration, error) {
	if i >= len(args) {
		return fallback, nil
	}
	return time.ParseDuration(args[i])
}

// Errno names what a network call came to: the errno's name, TIMEOUT, EOF is for the caller, or the error's text.
func Errno(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return "TIMEOUT"
	}
	return strings.ReplaceAll(err.Error(), "\n", " ")
}

// fds lists the descriptors of this process that are open besides those the Go runtime opens for its own use, which
// all have close-on-exec set: what is inherited has not.
func fds([]string) (string, error) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return "", err
	}
	var open []int
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			return "", err
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err == nil && flags&unix.FD_CLOEXEC == 0 {
			open = append(open, fd)
		}
	}
	slices.Sort(open)
	return strings.Trim(fmt.Sprint(open), "[]"), nil
}

// ids prints "UID GID CapEff NoNewPrivs" of this process.
func ids([]string) (string, error) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return "", err
	}
	values := map[string]string{}
	for _, line := range strings.Split(string(text), "\n") {
		name, value, _ := strings.Cut(line, ":")
		values[name] = strings.TrimSpace(value)
	}
	return fmt.Sprintf("%d %d %s %s", os.Getuid(), os.Getgid(), values["CapEff"], values["NoNewPrivs"]), nil
}

// links prints each interface as name:flag,flag:mtu.
func links([]string) (string, error) {
	list, err := net.Interfaces()
	if err != nil {
		return "", err
	}
	var words []string
	for _, l := range list {
		state := "down"
		if l.Flags&net.FlagUp != 0 {
			state = "up"
		}
		words = append(words, fmt.Sprintf("%s:%s:%d", l.Name, state, l.MTU))
	}
	return strings.Join(words, " "), nil
}

// netns prints the inode of the network namespace.
func netns([]string) (string, error) {
	link, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return "", err
	}
	return strings.Trim(link, "net:[]"), nil
}

// read prints a file as a Go string literal, so that it stays on one line.
func read(args []string) (string, error) {
	text, err := os.ReadFile(arg(args, 0, ""))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return Errno(err), nil
	}
	return strconv.Quote(string(text)), err
}

func exit(args []string) (string, error) {
	code, err := number(args, 0, 0)
	if err != nil {
		return "", err
	}
	os.Exit(code)
	return "", nil
}

// die ends this process by a signal.
func die(args []string) (string, error) {
	n, err := number(args, 0, int(syscall.SIGKILL))
	if err != nil {
		return "", err
	}
	signal.Reset()
	if err := syscall.Kill(os.Getpid(), syscall.Signal(n)); err != nil {
		return "", err
	}
	time.Sleep(time.Second)
	return "", fmt.Errorf("survived signal %d", n)
}

// ignore catches a signal and exits with a code when it comes: ignore SIGNAL CODE.
func ignore(args []string) (string, error) {
	n, err := number(args, 0, int(syscall.SIGTERM))
	if err != nil {
		return "", err
	}
	code, err := number(args, 1, 0)
	if err != nil {
		return "", err
	}
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.Signal(n))
	go func() {
		<-c
		os.Exit(code)
	}()
	return fmt.Sprintf("waiting %d", os.Getpid()), nil
}

// daemon starts a copy of this program that sleeps in a session of its own, and prints its pid.
func daemon([]string) (string, error) {
	p, err := os.StartProcess("/proc/self/exe", []string{os.Args[0], "guest", "sleep"},
		&os.ProcAttr{Env: os.Environ(), Sys: &syscall.SysProcAttr{Setsid: true}})
	if err != nil {
		return "", err
	}
	return strconv.Itoa(p.Pid), p.Release()
}

func connectUnix(args []string) (string, error) {
	c, err := net.Dial("unix", arg(args, 0, ""))
	if err != nil {
		return Errno(err), nil
	}
	c.Close()
	return "connected", nil
}
