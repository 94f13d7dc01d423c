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
	"time"

	"github.com/google/go-cmp/cmp"
)

// pair writes a certificate and its key.
func pair(t *testing.T, dir, name string) (certificate, key string) {
	t.Helper()
	return pairFor(t, dir, name, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
}

func pairFor(t *testing.T, dir, name string, from, until time.Time) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: until}
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
		fmt.Sprintf("4 listeners[0].tls.certificate: %s and %s are not a pair: tls: private key does not match public key", certA, keyB),
		fmt.Sprintf("4 listeners[0].tls.clientCA: %s has no certificate that can be read", keyA),
		fmt.Sprintf("4 listeners[0].tls.certificate: %s cannot be read: no such file or directory", missing),
		fmt.Sprintf("4 listeners[0].tls.key: %s cannot be read: no such file or directory", missing),
		fmt.Sprintf("4 listeners[0].tls.clientCA: %s cannot be read: no such file or directory", missing),
		fmt.Sprintf("8 backends[0].tls.certificate: %s and %s are not a pair: tls: failed to find certificate PEM data in certificate input, "+
			"but did find a private key; PEM inputs may have been switched", keyB, certB),
		fmt.Sprintf("8 backends[0].tls.ca: %s cannot be read: is a directory", dir),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

func TestCheckTimes(t *testing.T) {
	dir := t.TempDir()
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	old, oldKey := pairFor(t, dir, "old", now.Add(-2*time.Hour), now.Add(-time.Hour))
	early, earlyKey := pairFor(t, dir, "early", now.Add(time.Hour), now.Add(2*time.Hour))
	c := parse(t, fmt.Sprintf("listeners:\n- {address: ':1', tls: {certificate: %q, key: %q}}\n- {address: ':2', tls: {certificate: none, key: none}}\n"+
		"backends: [{name: a, target: 'a:1', tls: {certificate: %q, key: %q}}, {name: b, target: 'a:1', tls: {}}]\nroutes: [{backend: a}]", old, oldKey, early, earlyKey))
	want := fmt.Sprintf("proxy.yaml:2:38: listeners[0].tls.certificate: %s has expired: it was valid until 2026-11-21T11:00:00Z\n", old)
	got := c.CheckTimes(now).Error() + "\n"
	want += fmt.Sprintf("proxy.yaml:4:56: backends[0].tls.certificate: %s is not valid yet: it will be from 2026-11-21T13:00:00Z\n", early)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if problems := c.CheckTimes(now.Add(-90 * time.Minute)); len(problems) != 1 {
		t.Errorf("while the first is valid: %v", problems)
	}
}
