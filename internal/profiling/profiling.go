// Package profiling serves Go's profiles to clients on this machine.
//
// Profiles show memory and are not authenticated, so they have a listener of their own, which is on a loopback address. The arguments of the process, which
// Go's handler serves too, are left out: they may hold credentials.
package profiling

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"time"
)

// CheckAddress returns why profiles may not be served there: only loopback addresses are allowed. Empty is allowed, and means none.
func CheckAddress(address string) error {
	if address == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%w; expected HOST:PORT, for instance 127.0.0.1:6060", err)
	}
	if ip := net.ParseIP(host); host == "localhost" || ip != nil && ip.IsLoopback() {
		return nil
	}
	return fmt.Errorf("%q is not a loopback address; profiles show memory and are not authenticated, so use 127.0.0.1 or [::1], and a tunnel from other machines", address)
}

// Serve serves profiles at /debug/pprof/ of the address until stop is called, which waits for the server. It returns the address that it got. log gets the
// server's errors.
func Serve(address string, log *slog.Logger) (got string, stop func(), err error) {
	if address == "" {
		return "", func() {}, nil
	}
	if err := CheckAddress(address); err != nil {
		return "", nil, err
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return "", nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	server := &http.Server{Handler: knownHosts(mux), ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)}
	ended := make(chan struct{})
	go func() { // ends with stop, which waits for it
		defer close(ended)
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			_ = listener.Close()
		}
	}()
	return listener.Addr().String(), func() { _ = server.Close(); <-ended }, nil
}

// knownHosts answers requests for loopback names only: a page of another site could otherwise reach this address under a name of its own (DNS rebinding).
func knownHosts(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(r.Host); err == nil {
			host = h
		}
		if CheckAddress(net.JoinHostPort(host, "0")) != nil {
			http.Error(w, "unknown host", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func index(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/debug/pprof/cmdline" {
		http.NotFound(w, r)
		return
	}
	pprof.Index(w, r)
}
