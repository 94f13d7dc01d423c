package connect

import (
	"github.com/spf13/pflag"
	"google.golang.org/grpc"

	"github.com/levada-io/levada/stream"
)

// ProducerFlags say how producers are reached.
type ProducerFlags struct {
	Target, CA, Cert, Key string
	TLS                   bool
}

// Register adds the flags. target is the help text of --target.
func (f *ProducerFlags) Register(flags *pflag.FlagSet, target string) {
	flags.StringVar(&f.Target, "target", "", target)
	flags.BoolVar(&f.TLS, "tls", false, "use TLS towards producers")
	flags.StringVar(&f.CA, "ca", "", "file of the certificates that producers are checked with, instead of the system's; implies --tls")
	flags.StringVar(&f.Cert, "tls-cert", "", "file of the certificate that is shown to producers, which may demand one (serve --tls-client-ca); implies --tls")
	flags.StringVar(&f.Key, "tls-key", "", "file of the certificate's key")
}

// Connections opens none yet: each is made when a job needs it.
func (f *ProducerFlags) Connections() (*stream.Connections, error) {
	transport, err := f.Credentials()
	if err != nil {
		return nil, err
	}
	return stream.NewConnections(f.Target, grpc.WithTransportCredentials(transport)), nil
}
