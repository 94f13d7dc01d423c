package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// issueFor writes a certificate for names, and its key.
func (a *authority) issueFor(certFile, keyFile string, names ...string) {
	a.t.Helper()
	a.last++
	key := newKey(a.t)
	template := &x509.Certificate{SerialNumber: big.NewInt(a.last), Subject: pkix.Name{CommonName: names[0]}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: names}
	der, err := x509.CreateCertificate(nil, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	a.write(keyFile, "PRIVATE KEY", private)
	a.write(certFile, "CERTIFICATE", der)
}

// TestCertificatesByName: a client gets the certificate for the name that it asks for, also after the files were replaced, and others get the default one.
func TestCertificatesByName(t *testing.T) {
	ours, dir := newAuthority(t), t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	ours.issueFor(file("d.crt"), file("d.key"), "default.example", "*.shop.example")
	ours.issueFor(file("w.crt"), file("w.key"), "*.shop.example")
	ours.issueFor(file("e.crt"), file("e.key"), "Orders.shop.example")
	p := start(t, oneBackend("127.0.0.1:1", "listener: tls: {certificate: '"+file("d.crt")+"', key: '"+file("d.key")+"', certificates: [{certificate: '"+file("w.crt")+"', key: '"+file("w.key")+
		"'}, {certificate: '"+file("e.crt")+"', key: '"+file("e.key")+"'}]}"))
	shown := func(name string) []string {
		t.Helper()
		nc, err := tls.Dial("tcp", p.addr, &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = nc.Close() }()
		return nc.ConnectionState().PeerCertificates[0].DNSNames
	}
	for name, want := range map[string]string{"": "default.example", "other.example": "default.example", "orders.SHOP.example": "Orders.shop.example", "x.shop.example": "*.shop.example",
		"y.x.shop.example": "default.example"} {
		if got := shown(name); got[0] != want {
			t.Errorf("a client that asks for %q gets the certificate for %v, want %s", name, got, want)
		}
	}
	ours.issueFor(file("e.crt"), file("e.key"), "orders.shop.example", "renewed.example")
	eventually(t, "the new certificate is shown", func() bool { return slices.Contains(shown("orders.shop.example"), "renewed.example") })
	if err := os.WriteFile(file("e.crt"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the log says that it cannot be used", func() bool { shown(""); return p.log.with("cannot be used", "e.crt") > 0 })
	if !slices.Contains(shown("orders.shop.example"), "renewed.example") {
		t.Error("a file that is broken takes the certificate away")
	}
}
