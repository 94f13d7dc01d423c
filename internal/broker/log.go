package broker

import (
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
)

// logger passes the server's warnings and errors on; what it says of its start is of no use to a reader of our logs.
type logger struct {
	out  *slog.Logger
	mu   sync.Mutex
	last string
}

func (l *logger) Noticef(string, ...any) {}
func (l *logger) Debugf(string, ...any)  {}
func (l *logger) Tracef(string, ...any)  {}

func (l *logger) Warnf(format string, v ...any) {
	text := fmt.Sprintf(format, v...)
	l.keep(format, v...)
	switch {
	case l.out == nil:
	case strings.Contains(text, "Stream state outdated"): // after each kill: the index is rebuilt from the blocks, which are what counts
		l.out.Debug("broker: " + text)
	default:
		l.out.Warn("broker: " + text)
	}
}

func (l *logger) Errorf(format string, v ...any) {
	l.keep(format, v...)
	if l.out != nil {
		l.out.Error("broker: " + fmt.Sprintf(format, v...))
	}
}

func (l *logger) Fatalf(format string, v ...any) { l.Errorf(format, v...) }

func (l *logger) keep(format string, v ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = fmt.Sprintf(format, v...)
}

func (l *logger) lastError() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

func splitHostPort(address string) (string, int, error) {
	host, p, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, fmt.Errorf("listen address %q: %w (expected host:port, for instance 127.0.0.1:4222)", address, err)
	}
	port, err := strconv.Atoi(p)
	if err != nil || port < 0 || port > 65535 {
		return "", 0, fmt.Errorf("listen address %q: port %q is not a number from 0 to 65535", address, p)
	}
	if port == 0 {
		port = -1 // the server's word for any free port
	}
	return host, port, nil
}
