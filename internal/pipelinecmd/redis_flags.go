package pipelinecmd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/dataplane/redislink"
)

// redisFlags say where Redis is and who this process is to it.
type redisFlags struct {
	url                            string
	user, passwordFile             string
	certificates, certificate, key string
}

func (f *redisFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.url, "redis", "", "URL of Redis 7 or later in the place of --nats: redis://HOST[:PORT][/DB], rediss:// for TLS, redis://HOST,HOST... for a cluster, redis+sentinel://HOST,HOST.../MASTER")
	flags.StringVar(&f.user, "redis-user", "", "user name for Redis, with --redis-password-file")
	flags.StringVar(&f.passwordFile, "redis-password-file", "", "file of the password for Redis; it is read again for each connection")
	flags.StringVar(&f.certificates, "redis-ca", "", "file of the CA certificates that the certificate of Redis is verified against")
	flags.StringVar(&f.certificate, "redis-cert", "", "file of the client certificate for Redis")
	flags.StringVar(&f.key, "redis-key", "", "file of the client certificate's key")
}

// config is how to connect to Redis; nil without a URL. The error is a usage error that names the flag.
func (f *redisFlags) config(flags *pflag.FlagSet) (*redislink.Config, error) {
	usage := func(name string, err error) error {
		return commandline.Usagef("%s: %w", commandline.Given(flags.Lookup(name)), err)
	}
	switch {
	case f.url == "" && (f.user != "" || f.passwordFile != "" || f.certificates != "" || f.certificate != "" || f.key != ""):
		return nil, commandline.Usagef("credentials for Redis are given, but --redis does not say where it is")
	case f.url == "":
		return nil, nil
	case f.user != "" && f.passwordFile == "":
		return nil, commandline.Usagef("--redis-user is given without --redis-password-file")
	case (f.certificate == "") != (f.key == ""):
		return nil, commandline.Usagef("--redis-cert and --redis-key are needed together")
	}
	address, err := redislink.ParseAddress(f.url)
	if err != nil {
		return nil, usage("redis", err)
	}
	cfg := &redislink.Config{Address: address}
	if f.passwordFile != "" {
		if address.Password != "" {
			return nil, commandline.Usagef("the password of Redis is given twice, in the URL and by --redis-password-file: remove one of them")
		}
		if _, err := readPassword(f.passwordFile); err != nil {
			return nil, usage("redis-password-file", err)
		}
		user := f.user
		if user == "" {
			user = address.Username
		}
		cfg.Credentials = func() (string, string, error) {
			password, err := readPassword(f.passwordFile)
			return user, password, err
		}
	}
	if f.certificates == "" && f.certificate == "" {
		return cfg, nil
	}
	if address.TLS == nil {
		return nil, commandline.Usagef("certificates for Redis are given, but the URL has no TLS: begin it with rediss://")
	}
	cfg.Address.TLS = address.TLS.Clone()
	if f.certificates != "" {
		pem, err := os.ReadFile(f.certificates)
		if err != nil {
			return nil, usage("redis-ca", err)
		}
		cfg.Address.TLS.RootCAs = x509.NewCertPool()
		if !cfg.Address.TLS.RootCAs.AppendCertsFromPEM(pem) {
			return nil, usage("redis-ca", fmt.Errorf("%s has no certificate in PEM form", f.certificates))
		}
	}
	if f.certificate != "" {
		pair, err := tls.LoadX509KeyPair(f.certificate, f.key)
		if err != nil {
			return nil, usage("redis-cert", err)
		}
		cfg.Address.TLS.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

func readPassword(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	password := strings.TrimRight(string(b), "\r\n")
	if password == "" {
		return "", errors.New(path + " is empty")
	}
	return password, nil
}
