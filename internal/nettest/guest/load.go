package guest

import (
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// dialMany: ADDR N. Begins n connections at once and prints how many began; they go on for a few seconds.
func dialMany(args []string) (string, error) {
	n, err := number(args, 1, 1)
	if err != nil {
		return "", err
	}
	var begun sync.WaitGroup
	for range n {
		begun.Add(1)
		go func() {
			begun.Done()
			if c, err := net.DialTimeout("tcp", arg(args, 0, ""), patience); err == nil {
				c.Close()
			}
		}()
	}
	begun.Wait()
	time.Sleep(200 * time.Millisecond) // the first SYNs are on their way
	return fmt.Sprint(n), nil
}

// churn: ADDR N. Opens n connections to an Echo one after the other, one byte there and back on each, and prints how
// many worked.
func churn(args []string) (string, error) {
	n, err := number(args, 1, 1)
	if err != nil {
		return "", err
	}
	worked := 0
	for range n {
		c, err := net.DialTimeout("tcp", arg(args, 0, ""), patience)
		if err != nil {
			continue
		}
		b := []byte("x")
		if err = greeted(c); err == nil {
			if _, err = c.Write(b); err == nil {
				_, err = io.ReadFull(c, b)
			}
		}
		_ = c.(*net.TCPConn).SetLinger(0) // or TIME_WAIT eats the ports
		c.Close()
		if err == nil {
			worked++
		}
	}
	return fmt.Sprint(worked), nil
}

// rawSYNs: ADDR PORT N. Sends n SYNs of as many connections as frames, and prints how many.
func rawSYNs(args []string) (string, error) {
	dst, port, err := target(args)
	if err != nil {
		return "", err
	}
	n, err := number(args, 2, 1)
	if err != nil {
		return "", err
	}
	w, err := openWire()
	if err != nil {
		return "", err
	}
	defer w.close()
	const firstPort = 1024
	for i := range n {
		if err := w.send(w.ip(dst, protoTCP, tcpSegment(uint16(firstPort+i), port, tcpSYN, 0), 16)); err != nil {
			return "", err
		}
	}
	return fmt.Sprint(n), nil
}
