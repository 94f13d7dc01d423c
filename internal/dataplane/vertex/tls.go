package vertex

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/levada-io/levada/api/v1alpha1"
)

// tlsConfig is for connections that the vertex makes. Without a CA the system's are trusted.
func (e *Env) tlsConfig(t *v1alpha1.TLS) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: t.InsecureSkipVerify} // the user's word in the manifest
	if t.CACertSecret != nil {
		pem, err := e.Secret(t.CACertSecret.Name, t.CACertSecret.Key)
		if err != nil {
			return nil, err
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM([]byte(pem)) {
			return nil, fmt.Errorf("secret %s, key %s holds no certificate in PEM", t.CACertSecret.Name, t.CACertSecret.Key)
		}
	}
	if t.CertSecret != nil && t.KeySecret != nil {
		cert, err1 := e.Secret(t.CertSecret.Name, t.CertSecret.Key)
		key, err2 := e.Secret(t.KeySecret.Name, t.KeySecret.Key)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
		if err != nil {
			return nil, err
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

// serverTLS is for connections that the vertex takes. With a client CA every client must have a certificate of it.
func (e *Env) serverTLS(t *v1alpha1.ServerTLS) (*tls.Config, error) {
	if t.CertSecret == nil || t.KeySecret == nil {
		return nil, errors.New("certSecret and keySecret are required")
	}
	cfg, err := e.tlsConfig(&v1alpha1.TLS{CertSecret: t.CertSecret, KeySecret: t.KeySecret, CACertSecret: t.ClientCASecret})
	if err != nil {
		return nil, err
	}
	if t.ClientCASecret != nil {
		cfg.ClientCAs, cfg.RootCAs, cfg.ClientAuth = cfg.RootCAs, nil, tls.RequireAndVerifyClientCert
	}
	return cfg, nil
}

// nkeyOption signs with a seed, which is not kept.
func nkeyOption(seed string) (nats.Option, error) {
	pair, err := nkeys.FromSeed([]byte(seed))
	if err != nil {
		return nil, fmt.Errorf("nkey seed: %w", err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("nkey seed: %w", err)
	}
	return nats.Nkey(public, pair.Sign), nil
}
