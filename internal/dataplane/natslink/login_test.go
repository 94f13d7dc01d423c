package natslink_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/levada-io/levada/internal/dataplane/natslink"
)

// issue makes a certificate for 127.0.0.1 that is its own CA.
func issue(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(certificate)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// start runs a NATS server until the end of the test, and returns its host and port.
func start(t *testing.T, opt *server.Options) string {
	t.Helper()
	opt.Host, opt.Port, opt.NoSigs, opt.NoLog = "127.0.0.1", -1, true, true
	s, err := server.NewServer(opt)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server does not start")
	}
	return s.Addr().String()
}

// TestLoginThatIsWrongIsOneErrorAtOnce: waiting does not help against it, and the error says which flag does.
func TestLoginThatIsWrongIsOneErrorAtOnce(t *testing.T) {
	t.Parallel()
	certificate, pool := issue(t)
	_, otherCA := issue(t)
	plain := start(t, &server.Options{Username: "lark", Password: "song"})
	secure := start(t, &server.Options{TLS: true, TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}}})
	mutual := start(t, &server.Options{TLS: true, TLSVerify: true, TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}})
	ca := func(pool *x509.CertPool) nats.Option { return nats.Secure(&tls.Config{RootCAs: pool}) }
	for _, c := range []struct {
		name, url string
		options   []nats.Option
		want      string // empty: it connects
	}{
		{"wrong password", "nats://lark:thrush@" + plain, nil, "check the user, password"},
		{"no password", "nats://" + plain, nil, "check the user, password"},
		{"right password", "nats://lark:song@" + plain, nil, ""},
		{"TLS on this side only", "tls://lark:song@" + plain, nil, "the server has no TLS"},
		{"no CA", "nats://" + secure, nil, "--nats-ca"},
		{"another CA", "tls://" + secure, []nats.Option{ca(otherCA)}, "--nats-ca"},
		{"right CA", "tls://" + secure, []nats.Option{ca(pool)}, ""},
		{"a certificate for another name", "tls://localhost:" + secure[strings.LastIndexByte(secure, ':')+1:], []nats.Option{ca(pool)}, "host name of the certificate"},
		{"no client certificate", "tls://" + mutual, []nats.Option{ca(pool)}, "--nats-cert"},
		{"client certificate", "tls://" + mutual, []nats.Option{nats.Secure(&tls.Config{RootCAs: pool, Certificates: []tls.Certificate{certificate}})}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			l, err := natslink.Dial(t.Context(), c.url, slog.New(slog.DiscardHandler), c.options...)
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				l.Conn.Close()
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || time.Since(began) > 5*time.Second {
				t.Fatalf("after %v: %v, want %q", time.Since(began), err, c.want)
			}
			if strings.Contains(err.Error(), "thrush") || strings.Contains(err.Error(), "song") {
				t.Errorf("the password is in it: %v", err)
			}
		})
	}
}
