package target

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A test binary that is started with this variable is Go's own reverse proxy; its value is the address, the backends, and the certificate's files.
const reverseProxyVar = "HOSTILE_REVERSEPROXY"

func reverseProxy(t testing.TB, o Options, addr, cert, key string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), reverseProxyVar+"="+strings.Join([]string{addr, o.Backend, o.Evil, cert, key}, " "))
	return cmd
}

// reverseProxyMain does not return in a process that Start has started as reverseproxy.
func reverseProxyMain() {
	v := os.Getenv(reverseProxyVar)
	if v == "" {
		return
	}
	f := strings.Split(v, " ")
	both := new(http.Protocols)
	both.SetUnencryptedHTTP2(true)
	front := new(http.Protocols)
	front.SetUnencryptedHTTP2(true)
	front.SetHTTP2(true)
	front.SetHTTP1(true)
	to := func(addr string) http.Handler {
		p := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: addr})
		p.Transport = &http.Transport{Protocols: both}
		p.ErrorLog = log.New(discard{}, "", 0)
		return p
	}
	mux := http.NewServeMux()
	mux.Handle("/", to(f[1]))
	mux.Handle(EvilPath, to(f[2]))
	server := &http.Server{Addr: f[0], Handler: mux, Protocols: front, ReadHeaderTimeout: 5 * time.Second, ErrorLog: log.New(discard{}, "", 0)}
	if f[3] != "" {
		log.Fatal(server.ListenAndServeTLS(f[3], f[4]))
	}
	log.Fatal(server.ListenAndServe())
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// certificate writes a certificate for this machine, which is its own authority, and its key.
func certificate(t testing.TB, dir string) (cert, key string) {
	t.Helper()
	secret, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	is := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, is, is, &secret.PublicKey, secret)
	must(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(secret)
	must(t, err)
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	must(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	must(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
	return cert, key
}
