package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// CheckFiles reports certificates and keys that are missing, cannot be read or do not belong together, and Unix sockets at one path. It is apart from Validate because a
// configuration is often checked on a machine that has no keys. Paths are taken from the working directory.
func (c *Config) CheckFiles() Problems {
	v := &validation{c: c}
	v.sockets()
	if file := c.Admin.TokenFile; file != "" {
		if text, ok := v.read("admin.tokenFile", file); ok && len(strings.TrimSpace(string(text))) < 16 {
			v.add("admin.tokenFile", Problem{Message: file + " has a token of less than 16 bytes", Expected: "such as the output of openssl rand -base64 32"})
		}
	}
	for i, l := range c.Listeners {
		if t := l.TLS; t != nil {
			at := fmt.Sprintf("listeners[%d].tls", i)
			v.pair(at, t.Certificate, t.Key)
			for j, c := range t.Certificates {
				v.pair(fmt.Sprintf("%s.certificates[%d]", at, j), c.Certificate, c.Key)
			}
			v.authorities(at+".clientCA", t.ClientCA)
		}
	}
	for i, b := range c.Backends {
		if t := b.TLS; t != nil {
			at := fmt.Sprintf("backends[%d].tls", i)
			v.pair(at, t.Certificate, t.Key)
			v.authorities(at+".ca", t.CA)
		}
	}
	return v.problems
}

// file is one that a field names.
type file struct{ at, path string }

// files are those that the proxy reads.
func (c *Config) files() []file {
	all := []file{{"admin.tokenFile", c.Admin.TokenFile}}
	for i, l := range c.Listeners {
		t := l.TLS
		if t == nil {
			continue
		}
		at := fmt.Sprintf("listeners[%d].tls", i)
		all = append(all, file{at + ".certificate", t.Certificate}, file{at + ".key", t.Key}, file{at + ".clientCA", t.ClientCA})
		for j, pair := range t.Certificates {
			all = append(all, file{fmt.Sprintf("%s.certificates[%d].certificate", at, j), pair.Certificate}, file{fmt.Sprintf("%s.certificates[%d].key", at, j), pair.Key})
		}
	}
	for i, b := range c.Backends {
		at := fmt.Sprintf("backends[%d]", i)
		if path, ok := strings.CutPrefix(b.Target, "file://"); ok {
			all = append(all, file{at + ".target", path})
		}
		if t := b.TLS; t != nil {
			all = append(all, file{at + ".tls.ca", t.CA}, file{at + ".tls.certificate", t.Certificate}, file{at + ".tls.key", t.Key})
		}
	}
	return all
}

// sockets reports Unix sockets at one path that are written differently because a folder is a symbolic link, as /run and /var/run often are.
func (v *validation) sockets() {
	v.taken = newTaken()
	note := func(at, text string) {
		path, unix := unixPath(text)
		if !unix || path == "" {
			return
		}
		if folder, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil { // one that is missing is reported when the socket is made
			path = filepath.Join(folder, filepath.Base(path))
		}
		v.exactly(at, text, unixKey(path), path)
	}
	for i, l := range v.c.Listeners {
		note(fmt.Sprintf("listeners[%d].address", i), l.Address)
	}
	note(adminControl, v.c.Admin.Control)
}

// CheckTimes reports certificates that are not valid now. It is apart from CheckFiles because a proxy works with them: it is for its peers to refuse them.
func (c *Config) CheckTimes(now time.Time) Problems {
	v := &validation{c: c}
	for i, l := range c.Listeners {
		if t := l.TLS; t != nil {
			v.valid(fmt.Sprintf("listeners[%d].tls.certificate", i), t.Certificate, t.Key, now)
			for j, c := range t.Certificates {
				v.valid(fmt.Sprintf("listeners[%d].tls.certificates[%d].certificate", i, j), c.Certificate, c.Key, now)
			}
		}
	}
	for i, b := range c.Backends {
		if t := b.TLS; t != nil {
			v.valid(fmt.Sprintf("backends[%d].tls.certificate", i), t.Certificate, t.Key, now)
		}
	}
	return v.problems
}

func (v *validation) valid(at, certificate, key string, now time.Time) {
	pair, err := tls.LoadX509KeyPair(certificate, key)
	switch {
	case err != nil: // CheckFiles has spoken
	case now.After(pair.Leaf.NotAfter):
		v.add(at, Problem{Message: fmt.Sprintf("%s has expired: it was valid until %s", certificate, pair.Leaf.NotAfter.Format(time.RFC3339))})
	case now.Before(pair.Leaf.NotBefore):
		v.add(at, Problem{Message: fmt.Sprintf("%s is not valid yet: it will be from %s", certificate, pair.Leaf.NotBefore.Format(time.RFC3339))})
	}
}

func (v *validation) pair(at, certificate, key string) {
	if certificate == "" || key == "" {
		return // without both, Validate has spoken
	}
	chain, ok := v.read(at+".certificate", certificate)
	private, okKey := v.read(at+".key", key)
	if !ok || !okKey {
		return
	}
	if _, err := tls.X509KeyPair(chain, private); err != nil {
		v.add(at+".certificate", Problem{
			Message:  fmt.Sprintf("%s and %s are not a pair: %v", certificate, key, err),
			Expected: "PEM files of a certificate and its private key",
		})
	}
}

func (v *validation) authorities(at, path string) {
	if path == "" {
		return
	}
	if text, ok := v.read(at, path); ok && !x509.NewCertPool().AppendCertsFromPEM(text) {
		v.add(at, Problem{Message: path + " has no certificate that can be read", Expected: "a PEM file"})
	}
}

func (v *validation) read(at, path string) ([]byte, bool) {
	text, err := os.ReadFile(path)
	if err == nil {
		return text, true
	}
	reason := err
	if e := (*fs.PathError)(nil); errors.As(err, &e) {
		reason = e.Err // without the path, which is in the sentence already
	}
	v.add(at, Problem{Message: fmt.Sprintf("%s cannot be read: %v", path, reason), Hint: "relative paths begin at the working directory of the proxy"})
	return nil, false
}
