package proxy

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/levada-io/levada/internal/proxy/config"
)

const (
	alpn       = "h2"
	checkFiles = time.Second // how often files are looked at, at most
)

// watched is something made of files, which is loaded again when one of them has changed. While they cannot be read, the last version stays in use.
type watched[T any] struct {
	files []string
	load  func() (T, error)
	log   *slog.Logger

	mu      sync.Mutex
	current T
	stamps  []stamp
	bad     []stamp // with which they could not be read
	checked time.Time
}

type stamp struct {
	modified time.Time
	size     int64
}

func newWatched[T any](log *slog.Logger, load func() (T, error), files ...string) (*watched[T], error) {
	files = slices.DeleteFunc(files, func(file string) bool { return file == "" })
	w := &watched[T]{files: files, load: load, stamps: stamps(files), log: log}
	var err error
	w.current, err = load()
	return w, err
}

func stamps(files []string) []stamp {
	all := make([]stamp, len(files))
	for i, name := range files {
		if info, err := os.Stat(name); err == nil {
			all[i] = stamp{info.ModTime(), info.Size()}
		}
	}
	return all
}

func (w *watched[T]) get() T {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now := time.Now(); now.Sub(w.checked) > checkFiles {
		w.checked = now
		if found := stamps(w.files); !slices.Equal(found, w.stamps) {
			w.reload(found)
		} else if w.bad != nil {
			w.bad = nil
			w.log.Info("TLS files can be read again, unchanged", "files", w.files)
		}
	}
	return w.current
}

func (w *watched[T]) reload(found []stamp) {
	next, err := w.load()
	switch {
	case err == nil:
		w.current, w.stamps, w.bad = next, found, nil
		w.log.Info("changed TLS files are in use", "files", w.files)
	case !slices.Equal(found, w.bad): // perhaps one is being written
		w.bad = found
		w.log.Warn("changed TLS files cannot be used: what was read before stays in use", "files", w.files, "error", err)
	}
}

func loadPool(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s has no certificate in PEM form", file)
	}
	return pool, nil
}

type listenerTLS struct{ config *watched[*tls.Config] }

func newListenerTLS(log *slog.Logger, c *config.ListenerTLS) (*listenerTLS, error) {
	files := []string{c.Certificate, c.Key, c.ClientCA}
	for _, more := range c.Certificates {
		files = append(files, more.Certificate, more.Key)
	}
	w, err := newWatched(log, func() (*tls.Config, error) {
		pair, err := tls.LoadX509KeyPair(c.Certificate, c.Key)
		if err != nil {
			return nil, err
		}
		pool, err := loadPool(c.ClientCA)
		if err != nil {
			return nil, err
		}
		t := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: uint16(c.MinVersion), NextProtos: []string{alpn, "http/1.1"}, ClientCAs: pool}
		if pool != nil {
			t.ClientAuth = tls.RequireAndVerifyClientCert
		}
		if len(c.Certificates) > 0 {
			named := names{}
			for _, more := range c.Certificates {
				pair, err := tls.LoadX509KeyPair(more.Certificate, more.Key)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", more.Certificate, err)
				}
				if len(pair.Leaf.DNSNames) == 0 {
					return nil, fmt.Errorf("%s has no DNS name, so no client can ask for it: use a certificate with a subject alternative name", more.Certificate)
				}
				named.add(&pair)
			}
			t.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) { return named.choose(hello, &pair), nil }
		}
		return t, nil
	}, files...)
	return &listenerTLS{w}, err
}

// shown is the certificate that a client has seen which asked for a name.
func (l *listenerTLS) shown(name string) *x509.Certificate {
	c := l.config.get()
	if c.GetCertificate != nil {
		if chosen, err := c.GetCertificate(&tls.ClientHelloInfo{ServerName: name}); err == nil {
			return chosen.Leaf
		}
	}
	return c.Certificates[0].Leaf
}

// names are certificates by the names in them, in lower case. A name can have several, of different kinds of keys.
type names map[string][]*tls.Certificate

func (n names) add(c *tls.Certificate) {
	for _, name := range c.Leaf.DNSNames {
		name = strings.ToLower(name)
		n[name] = append(n[name], c)
	}
}

// choose gives the certificate for the name that a client asks for: the exact one, that of *. and the rest, or the one for all others.
func (n names) choose(hello *tls.ClientHelloInfo, others *tls.Certificate) *tls.Certificate {
	name := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
	if name == "" {
		return others
	}
	found := n[name]
	if _, rest, ok := strings.Cut(name, "."); ok && found == nil {
		found = n["*."+rest]
	}
	for _, c := range found {
		if hello.SupportsCertificate(c) == nil {
			return c
		}
	}
	if len(found) > 0 {
		return found[0] // the client will say what it misses
	}
	return others
}

// server makes the handshake; the connection's deadline bounds it.
func (l *listenerTLS) server(nc net.Conn) (net.Conn, error) {
	t := tls.Server(nc, l.config.get())
	return t, t.Handshake()
}

// hostOf is the name by which a target's endpoints go; empty if each has its own.
func hostOf(target string) string {
	if rest, ok := strings.CutPrefix(target, "dns:///"); ok {
		host, _, _ := net.SplitHostPort(rest)
		return host
	}
	if rest, ok := strings.CutPrefix(target, "kubernetes:///"); ok {
		namespace, service, _ := strings.Cut(rest, "/")
		service, _, _ = strings.Cut(service, ":")
		return service + "." + namespace + ".svc"
	}
	return ""
}

type backendTLS struct{ config *watched[*tls.Config] }

// newBackendTLS returns nil without an error for a backend without TLS.
func newBackendTLS(log *slog.Logger, backend *config.Backend) (*backendTLS, error) {
	c := backend.TLS
	if c == nil {
		return nil, nil
	}
	name := cmp.Or(c.ServerName, hostOf(backend.Target))
	w, err := newWatched(log.With("backend", backend.Name), func() (*tls.Config, error) {
		pool, err := loadPool(c.CA)
		if err != nil {
			return nil, err
		}
		t := &tls.Config{RootCAs: pool, ServerName: name, NextProtos: []string{alpn}, MinVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(64)}
		if c.Certificate != "" || c.Key != "" {
			pair, err := tls.LoadX509KeyPair(c.Certificate, c.Key)
			if err != nil {
				return nil, err
			}
			t.Certificates = []tls.Certificate{pair}
		}
		return t, nil
	}, c.CA, c.Certificate, c.Key)
	return &backendTLS{w}, err
}

// client makes the handshake, and closes the connection if that fails.
func (b *backendTLS) client(ctx context.Context, nc net.Conn, address string) (net.Conn, error) {
	c := b.config.get()
	if c.ServerName == "" {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			host = address
		}
		c = c.Clone()
		c.ServerName = host
	}
	t := tls.Client(nc, c)
	err := t.HandshakeContext(ctx)
	if err == nil && t.ConnectionState().NegotiatedProtocol != alpn {
		err = errors.New("it does not speak HTTP/2 over TLS (ALPN h2)")
	}
	if err != nil {
		_ = nc.Close()
		return nil, err
	}
	return t, nil
}
