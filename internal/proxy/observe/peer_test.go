package observe_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/levada-io/levada/internal/proxy"
	"github.com/levada-io/levada/internal/proxy/config"
	"github.com/levada-io/levada/internal/proxy/proxytest"
)

// The identity of a client with a certificate is in the log of each of its calls.
func TestTLSPeer(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "orders", Organization: []string{"shop\n\x1b[31m"}}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := proxytest.Start(t, proxytest.Config(t, proxytest.NewBackend(t).Address, func(c *config.Config) {
		c.Listeners[0].TLS = &config.ListenerTLS{Certificate: certFile, Key: keyFile, ClientCA: certFile, MinVersion: tls.VersionTLS13}
	}), proxy.Options{})
	ended := make(chan proxy.Ended, 1)
	defer p.Watch(proxy.Watcher{Ended: func(e *proxy.Ended) { ended <- *e }})()
	pool := x509.NewCertPool()
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(leaf)
	pair := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	client := p.Client(t, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}})), grpc.WithUserAgent("shop/1"))
	if _, err := client.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
		t.Fatal(err)
	}
	e := <-ended
	if e.TLSPeer != leaf.Subject.String() || e.TLSPeer == "" || e.UserAgent != "shop/1 grpc-go/"+grpc.Version || e.Path != proxytest.Method || e.RequestBytes != 5 || e.ResponseBytes != 7 || e.Took <= 0 {
		t.Errorf("%+v", e)
	}
}
