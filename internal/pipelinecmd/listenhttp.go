package pipelinecmd

import (
	"fmt"
	"net"
	"strings"

	"github.com/spf13/pflag"
)

// hostFlag is a host name or an address without a port.
type hostFlag string

func (h *hostFlag) String() string { return string(*h) }

// Type implements pflag.Value.
func (h *hostFlag) Type() string { return "ADDRESS" }

// Set implements pflag.Value.
func (h *hostFlag) Set(text string) error {
	host := text
	if strings.HasPrefix(text, "[") && strings.HasSuffix(text, "]") {
		host = text[1 : len(text)-1]
	}
	if net.ParseIP(host) != nil {
		*h = hostFlag(host)
		return nil
	}
	if host == "" || strings.ContainsAny(host, ":/[]@ ") {
		return fmt.Errorf("expected an address without a port, such as 0.0.0.0, :: or 10.1.2.3; ports are set in the manifest, by source.http.ports")
	}
	*h = hostFlag(host)
	return nil
}

// registerListenHTTP adds the flag for where HTTP sources listen.
func registerListenHTTP(flags *pflag.FlagSet, host *hostFlag) {
	*host = "127.0.0.1"
	flags.Var(host, "listen-http", "address on which http sources listen, without a port; 0.0.0.0 for all interfaces")
}
