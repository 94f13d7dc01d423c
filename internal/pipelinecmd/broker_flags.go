package pipelinecmd

import (
	"fmt"
	"os"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/spf13/pflag"

	"github.com/levada-io/levada/internal/commandline"
)

// brokerFlags say where an external broker is and who we are to it. Credentials come from files or the environment, so that they stand in no list of processes.
type brokerFlags struct {
	url                                        string
	creds, nkey, user, passwordFile, tokenFile string
	certificates, certificate, key             string
}

func (f *brokerFlags) register(flags *pflag.FlagSet, usage string) {
	flags.StringVar(&f.url, "nats", "", usage)
	flags.StringVar(&f.creds, "nats-creds", "", "credentials file (.creds) for the broker")
	flags.StringVar(&f.nkey, "nats-nkey", "", "file of the nkey seed for the broker")
	flags.StringVar(&f.user, "nats-user", "", "user name for the broker, with --nats-password-file")
	flags.StringVar(&f.passwordFile, "nats-password-file", "", "file of the password for the broker")
	flags.StringVar(&f.tokenFile, "nats-token-file", "", "file of the token for the broker")
	flags.StringVar(&f.certificates, "nats-ca", "", "file of the CA certificates that the broker's certificate is verified against")
	flags.StringVar(&f.certificate, "nats-cert", "", "file of the client certificate for the broker")
	flags.StringVar(&f.key, "nats-key", "", "file of the client certificate's key")
}

// options are those of the connection. The error is a usage error that names the flag.
func (f *brokerFlags) options(flags *pflag.FlagSet) ([]nats.Option, error) {
	usage := func(name string, err error) error {
		return commandline.Usagef("%s: %w", commandline.Given(flags.Lookup(name)), err)
	}
	read := func(name, path string) (string, error) {
		b, err := os.ReadFile(path)
		if err != nil {
			return "", usage(name, err)
		}
		text := strings.TrimRight(string(b), "\r\n")
		if text == "" {
			return "", usage(name, fmt.Errorf("%s is empty", path))
		}
		return text, nil
	}
	given, ways := "", 0
	for name, value := range map[string]string{"nats-creds": f.creds, "nats-nkey": f.nkey, "nats-token-file": f.tokenFile, "nats-user": f.user} {
		if value != "" {
			given, ways = name, ways+1
		}
	}
	switch {
	case ways > 1:
		return nil, commandline.Usagef("--nats-creds, --nats-nkey, --nats-token-file and --nats-user exclude each other")
	case f.url == "" && (ways > 0 || f.certificates != "" || f.certificate != ""):
		return nil, commandline.Usagef("credentials for a broker are given, but --nats does not say which broker")
	case (f.user == "") != (f.passwordFile == ""):
		return nil, commandline.Usagef("--nats-user and --nats-password-file are needed together")
	case (f.certificate == "") != (f.key == ""):
		return nil, commandline.Usagef("--nats-cert and --nats-key are needed together")
	}
	var opts []nats.Option
	switch given {
	case "nats-creds":
		if _, err := read(given, f.creds); err != nil {
			return nil, err
		}
		opts = append(opts, nats.UserCredentials(f.creds))
	case "nats-nkey":
		opt, err := nats.NkeyOptionFromSeed(f.nkey)
		if err != nil {
			return nil, usage(given, err)
		}
		opts = append(opts, opt)
	case "nats-token-file":
		token, err := read(given, f.tokenFile)
		if err != nil {
			return nil, err
		}
		opts = append(opts, nats.Token(token))
	case "nats-user":
		password, err := read("nats-password-file", f.passwordFile)
		if err != nil {
			return nil, err
		}
		opts = append(opts, nats.UserInfo(f.user, password))
	}
	if f.certificates != "" {
		if _, err := read("nats-ca", f.certificates); err != nil {
			return nil, err
		}
		opts = append(opts, nats.RootCAs(f.certificates))
	}
	if f.certificate != "" {
		if _, err := read("nats-cert", f.certificate); err != nil {
			return nil, err
		}
		opts = append(opts, nats.ClientCert(f.certificate, f.key))
	}
	return opts, nil
}
