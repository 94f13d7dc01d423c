package admin

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
)

// Probes and metrics are for every client that reaches the address. The rest shows what clients send, or changes what the proxy does, so it is served at
// Access.Elsewhere if that is set, and otherwise to connections over the loopback interface or a Unix socket only; and with a token if there is one.

// MinToken is the least length of a token in bytes: 128 bits in base64 have 22.
const MinToken = 16

// ReadToken reads the token in a file, without the white space around it.
func ReadToken(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, 4097))
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(text))
	switch {
	case len(text) > 4096:
		return "", fmt.Errorf("%s has more than 4096 bytes, which is too long for a token", file)
	case len(token) < MinToken:
		return "", fmt.Errorf("the token in %s has %d bytes: expected %d or more, such as the output of openssl rand -base64 32", file, len(token), MinToken)
	case strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }):
		return "", fmt.Errorf("the token in %s has characters that an HTTP header cannot carry: expected ASCII without spaces", file)
	}
	return token, nil
}

// isLocal reports whether the request came over the loopback interface, by the addresses of both ends, or over a Unix socket.
func isLocal(r *http.Request) bool {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	switch local := local.(type) {
	case *net.UnixAddr:
		return true
	case *net.TCPAddr:
		from, err := netip.ParseAddrPort(r.RemoteAddr)
		return err == nil && from.Addr().Unmap().IsLoopback() && local.IP.IsLoopback()
	}
	return false
}

// overUnix reports whether the request came over a Unix socket.
func overUnix(r *http.Request) bool {
	_, ok := r.Context().Value(http.LocalAddrContextKey).(*net.UnixAddr)
	return ok
}

// isOwnHost reports whether a Host header can be that of a client that means this machine. A web page of another site reaches the loopback interface through a name
// of its own that resolves to 127.0.0.1 (DNS rebinding), and its browser sends that name.
func isOwnHost(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")), ".")
	if host == "" || host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	name, err := os.Hostname()
	return err == nil && host == strings.ToLower(name)
}

// checked refuses requests over the loopback interface whose Host is another machine's.
func checked(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isLocal(r) && !overUnix(r) && !isOwnHost(r.Host) {
			http.Error(w, fmt.Sprintf("the Host %.100q is not this machine: use its address, localhost or its host name", r.Host), http.StatusMisdirectedRequest)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// control serves what is not for every client.
func (s *Server) control(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		access := s.accessNow()
		if access.Elsewhere != "" {
			http.Error(w, "only probes and metrics are served here: the rest is at admin.control, "+access.Elsewhere, http.StatusForbidden)
			return
		}
		if access.TokenFile == "" {
			if !isLocal(r) {
				http.Error(w, "only probes and metrics are served to other machines: ask at a loopback address, or set admin.control and admin.tokenFile", http.StatusForbidden)
				return
			}
			h(w, r)
			return
		}
		if access.Remote || isLocal(r) {
			switch err := authorize(access.TokenFile, r); {
			case err == nil:
				h(w, r)
			case errors.Is(err, errToken):
				w.Header().Set("WWW-Authenticate", `Bearer realm="levada proxy"`)
				http.Error(w, err.Error(), http.StatusUnauthorized)
			default:
				s.Logger.Error("token of the administrative address cannot be read, requests refused", "error", err)
				http.Error(w, "the proxy cannot read its token (admin.tokenFile): see its log", http.StatusInternalServerError)
			}
			return
		}
		http.Error(w, "only probes and metrics are served to other machines: set admin.control to serve the rest to them", http.StatusForbidden)
	}
}

var errToken = errors.New("this needs the token of admin.tokenFile, as Authorization: Bearer TOKEN (--admin-token-file)")

// authorize reads the token each time, so that a file that was replaced is in force at once.
func authorize(tokenFile string, r *http.Request) error {
	token, err := ReadToken(tokenFile)
	if err != nil {
		return err
	}
	scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "bearer") || subtle.ConstantTimeCompare([]byte(strings.TrimSpace(given)), []byte(token)) != 1 {
		return errToken
	}
	return nil
}
