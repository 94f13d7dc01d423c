package connect

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/levada-io/levada/internal/commandline"
)

// Credentials are those that the flags name.
func (f *ProducerFlags) Credentials() (credentials.TransportCredentials, error) {
	own, err := Certificate(f.Cert, f.Key)
	if err != nil {
		return nil, err
	}
	if !f.TLS && f.CA == "" && own == nil {
		return insecure.NewCredentials(), nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.CA != "" {
		if config.RootCAs, err = CertPool("--ca", f.CA); err != nil {
			return nil, err
		}
	}
	if own != nil {
		// In Certificates it would not be sent to a producer that does not know its authority, who would then say that it got none.
		// Read for each connection: certificates are renewed, and a producer that denies the old one is asked again on a new connection.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if now, err := Certificate(f.Cert, f.Key); err == nil {
				return now, nil
			}
			return own, nil // the files are being written
		}
	}
	return readerTLS{credentials.NewTLS(config), f.Cert}, nil
}

// Certificate loads this program's own certificate; nil if it has none.
func Certificate(cert, key string) (*tls.Certificate, error) {
	switch {
	case cert == "" && key == "":
		return nil, nil
	case cert == "" || key == "":
		return nil, commandline.Usagef("--tls-cert and --tls-key go together: give both, or neither")
	}
	chain, err := os.ReadFile(cert)
	if err != nil {
		return nil, commandline.Usagef("--tls-cert: %w: expected a PEM file of the certificate", err)
	}
	private, err := os.ReadFile(key)
	if err != nil {
		return nil, commandline.Usagef("--tls-key: %w: expected a PEM file of the certificate's private key", err)
	}
	pair, err := tls.X509KeyPair(chain, private)
	if err != nil {
		return nil, commandline.Usagef("--tls-cert %s, --tls-key %s: %w: expected PEM files of a certificate and its private key", cert, key, err)
	}
	return &pair, nil
}

// CertPool loads the authorities that certificates are checked with.
func CertPool(flag, file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, commandline.Usagef("%s: %w", flag, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, commandline.Usagef("%s %s: the file holds no certificate: expected PEM, which begins with -----BEGIN CERTIFICATE-----", flag, file)
	}
	return pool, nil
}

// readerTLS is TLS towards producers, whose refusals name the flag to correct.
type readerTLS struct {
	credentials.TransportCredentials
	cert string // the file that is shown to producers, or empty
}

func (t readerTLS) Clone() credentials.TransportCredentials {
	return readerTLS{t.TransportCredentials.Clone(), t.cert}
}

func (t readerTLS) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := t.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		return nil, nil, t.explain(err)
	}
	return &readerConn{Conn: conn, tls: t}, info, nil
}

func (t readerTLS) explain(err error) error {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return fmt.Errorf("%w: name the file of its authority with --ca", err)
	}
	alert, ok := errors.AsType[*net.OpError](err)
	switch {
	case !ok || alert.Op != "remote error" || !strings.Contains(alert.Error(), "certificate"): // crypto/tls has no type for alerts
		return err
	case t.cert == "":
		return fmt.Errorf("%w: the producer demands one of its readers: give --tls-cert and --tls-key", err)
	}
	return fmt.Errorf("%w: the producer refuses the certificate of --tls-cert %s", err, t.cert)
}

// readerConn knows why a producer has hung up. In TLS 1.3 a reader's handshake is over before the producer has looked at its certificate. The refusal
// comes while the reader sends, and without this it would mostly see only that the connection is broken.
type readerConn struct {
	net.Conn
	tls   readerTLS
	heard atomic.Bool // the producer has sent something, so it has let us in
}

func (c *readerConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.heard.Store(true)
	}
	if err != nil {
		err = c.tls.explain(err)
	}
	return n, err
}

func (c *readerConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err != nil && !c.heard.Load() {
		if _, why := c.Read(make([]byte, 1)); why != nil && why != io.EOF {
			err = why
		}
	}
	return n, err
}
