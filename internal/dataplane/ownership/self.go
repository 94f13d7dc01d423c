package ownership

import (
	"bytes"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Self describes this process. Command is shown to people: without secrets.
func Self(command, version string) Owner {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	o := Owner{Instance: rand.Text(), Host: host, PID: os.Getpid(), Started: started, Command: command, Version: version}
	if start, _, err := processStart(o.PID); err == nil {
		o.ProcessStart = start
		o.Boot = readLine("/proc/sys/kernel/random/boot_id")
		o.PIDNamespace, _ = os.Readlink("/proc/self/ns/pid")
	}
	return o
}

var started = time.Now().UTC().Truncate(time.Second)

func readLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// alive asks the kernel about a process of this host. Where there is no /proc nothing is known, and the lease has to expire.
func alive(o Owner) Life {
	if o.ProcessStart == "" {
		return Unknown
	}
	start, state, err := processStart(o.PID)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return Ended
	case err != nil:
		return Unknown
	case start != o.ProcessStart, state == 'Z', state == 'X':
		return Ended // the PID was used again, or only its parent's wait is missing
	}
	return Running
}

// processStart reads field 22 of /proc/PID/stat, the start in clock ticks since the boot, and the state, field 3.
func processStart(pid int) (start string, state byte, err error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return "", 0, err
	}
	// The name, field 2, is in parentheses and can hold anything.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 20 || len(fields[0]) == 0 {
		return "", 0, errors.New("unexpected content of /proc/PID/stat")
	}
	return string(fields[19]), fields[0][0], nil
}

// StartOf returns the ProcessStart of a process of this host.
func StartOf(pid int) (string, error) {
	start, _, err := processStart(pid)
	return start, err
}

// Gone reports whether the process of a record is known to have ended: it ran on this host, or it released the pipeline.
func Gone(o Owner) bool {
	return o.Released || samePlace(o, Self("", "")) && alive(o) == Ended
}
