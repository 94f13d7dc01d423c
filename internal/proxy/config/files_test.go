package config_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// pair writes a certificate and its key.
func pair(t *testing.T, dir, name string) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	certificate, key = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")
	for file, block := range map[string]*pem.Block{certificate: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certificate, key
}

func TestCheckFiles(t *testing.T) {
	dir := t.TempDir()
	certA, keyA := pair(t, dir, "a")
	certB, keyB := pair(t, dir, "b")
	missing := filepath.Join(dir, "missing.pem")
	text := `
listeners:
- address: :1
  tls: {certificate: %q, key: %q, clientCA: %q}
backends:
- name: a
  target: a:1
  tls: {ca: %q, certificate: %q, key: %q}
- name: plain
  target: a:1
- name: system
  target: a:1
  tls: {}
routes: [{backend: a}]
`
	good := parse(t, fmt.Sprintf(text, certA, keyA, certB, certA, certB, keyB))
	if problems := good.CheckFiles(); len(problems) > 0 {
		t.Errorf("all is well, and yet: %v", problems)
	}
	var got []string
	for _, c := range []struct{ listener, key, clientCA, ca, cert, backendKey string }{
		{certA, keyB, keyA, certA, certB, keyB},
		{missing, missing, missing, dir, keyB, certB},
	} {
		for _, p := range parse(t, fmt.Sprintf(text, c.listener, c.key, c.clientCA, c.ca, c.cert, c.backendKey)).CheckFiles() {
			got = append(got, fmt.Sprintf("%d %s: %s", p.Line, p.Path, p.Message))
		}
	}
	want := []string{
		fmt.Sprintf("4 listeners[0].tls.certificate: %s and %s are no pair: tls: private key does not match public key", certA, keyB),
		fmt.Sprintf("4 listeners[0].tls.clientCA: %s has no certificate that can be read", keyA),
		fmt.Sprintf("4 listeners[0].tls.certificate: %s cannot be read: no such file or directory", missing),
		fmt.Sprintf("4 listeners[0].tls.key: %s cannot be read: no such file or directory", missing),
		fmt.Sprintf("4 listeners[0].tls.clientCA: %s cannot be read: no such file or directory", missing),
		fmt.Sprintf("8 backends[0].tls.certificate: %s and %s are no pair: tls: failed to find certificate PEM data in certificate input, "+
			"but did find a private key; PEM inputs may have been switched", keyB, certB),
		fmt.Sprintf("8 backends[0].tls.ca: %s cannot be read: is a directory", dir),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}
