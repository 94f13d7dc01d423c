package pipelinecmd

import (
	"fmt"
	"os"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/spf13/pflag"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/standalone"
)

// brokerFlags say where an external broker is and who this process is to it. Credentials come from files or the environment, so that they stand in no list of processes.
type brokerFlags struct {
	url                                        string
	creds, nkey, user, passwordFile, tokenFile string
	certificates, certificate, key             string
	redis                                      redisFlags
}

// given reports whether there is an external broker.
func (f *brokerFlags) given() bool { return f.url != "" || f.redis.url != "" }

// broker is the external broker. The error is a usage error that names the flag.
func (f *brokerFlags) broker(flags *pflag.FlagSet) (at standalone.Broker, err error) {
	if f.url != "" && f.redis.url != "" {
		return at, commandline.Usagef("%s and %s name two brokers, and a process has one: remove one of them",
			commandline.Given(flags.Lookup("nats")), commandline.Given(flags.Lookup("redis")))
	}
	at.NATS = f.url
	if at.NATSOptions, err = f.options(flags); err != nil {
		return at, err
	}
	at.Redis, err = f.redis.config(flags)
	return at, err
}

func (f *brokerFlags) register(flags *pflag.FlagSet, usage string) {
	flags.StringVar(&f.url, "nats", "", usage)
	f.redis.register(flags)
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
	if err := f.check(); err != nil {
		return nil, err
	}
	credentials, err := f.credentials(flags)
	if err != nil {
		return nil, err
	}
	tls, err := f.tls(flags)
	return append(credentials, tls...), err
}

// check refuses flags that do not go together.
func (f *brokerFlags) check() error {
	ways := 0
	for _, value := range []string{f.creds, f.nkey, f.tokenFile, f.user} {
		if value != "" {
			ways++
		}
	}
	switch {
	case ways > 1:
		return commandline.Usagef("--nats-creds, --nats-nkey, --nats-token-file and --nats-user exclude each other")
	case f.url == "" && (ways > 0 || f.certificates != "" || f.certificate != ""):
		return commandline.Usagef("credentials for a broker are given, but --nats does not say which broker")
	case (f.user == "") != (f.passwordFile == ""):
		return commandline.Usagef("--nats-user and --nats-password-file are needed together")
	case (f.certificate == "") != (f.key == ""):
		return commandline.Usagef("--nats-cert and --nats-key are needed together")
	}
	return nil
}

// credentials say who we are to the broker. Files are read here, so that a missing one is an error of the command line and not of the first connection.
func (f *brokerFlags) credentials(flags *pflag.FlagSet) ([]nats.Option, error) {
	switch {
	case f.creds != "":
		_, err := readFlagFile(flags, "nats-creds", f.creds)
		return []nats.Option{nats.UserCredentials(f.creds)}, err
	case f.nkey != "":
		option, err := nats.NkeyOptionFromSeed(f.nkey)
		if err != nil {
			return nil, flagError(flags, "nats-nkey", err)
		}
		return []nats.Option{option}, nil
	case f.tokenFile != "":
		token, err := readFlagFile(flags, "nats-token-file", f.tokenFile)
		return []nats.Option{nats.Token(token)}, err
	case f.user != "":
		password, err := readFlagFile(flags, "nats-password-file", f.passwordFile)
		return []nats.Option{nats.UserInfo(f.user, password)}, err
	}
	return nil, nil
}

// tls says whom we believe to be the broker, and shows our certificate.
func (f *brokerFlags) tls(flags *pflag.FlagSet) (options []nats.Option, err error) {
	if f.certificates != "" {
		if _, err := readFlagFile(flags, "nats-ca", f.certificates); err != nil {
			return nil, err
		}
		options = append(options, nats.RootCAs(f.certificates))
	}
	if f.certificate != "" {
		if _, err := readFlagFile(flags, "nats-cert", f.certificate); err != nil {
			return nil, err
		}
		options = append(options, nats.ClientCert(f.certificate, f.key))
	}
	return options, nil
}

// readFlagFile returns the text of the file that a flag names, without its last line end.
func readFlagFile(flags *pflag.FlagSet, flag, path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", flagError(flags, flag, err)
	}
	text := strings.TrimRight(string(b), "\r\n")
	if text == "" {
		return "", flagError(flags, flag, fmt.Errorf("%s is empty", path))
	}
	return text, nil
}

// flagError names the flag, or the environment variable that it was given by.
func flagError(flags *pflag.FlagSet, flag string, err error) error {
	return commandline.Usagef("%s: %w", commandline.Given(flags.Lookup(flag)), err)
}
