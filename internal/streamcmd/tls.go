package streamcmd

import (
	"crypto/tls"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/streamcmd/connect"
)

func (f *serveFlags) credentials() ([]grpc.ServerOption, error) {
	own, err := connect.Certificate(f.cert, f.keyFile)
	switch {
	case err != nil:
		return nil, err
	case own == nil && f.clientCA != "":
		return nil, commandline.Usagef("--tls-client-ca needs --tls-cert and --tls-key")
	case own == nil:
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*own}}
	if f.clientCA != "" {
		if config.ClientCAs, err = connect.CertPool("--tls-client-ca", f.clientCA); err != nil {
			return nil, err
		}
		config.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return []grpc.ServerOption{grpc.Creds(credentials.NewTLS(config))}, nil
}
