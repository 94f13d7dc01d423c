package config

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/levada-io/levada/internal/strictyaml"
)

// Forwarded is what endpoints learn of a client that the proxy stands in front of, and what becomes of such headers that the client sent itself: x-forwarded-for,
// x-forwarded-proto, x-forwarded-host, x-forwarded-port, x-real-ip, forwarded and x-forwarded-client-cert.
type Forwarded struct {
	Policy ForwardedPolicy `yaml:"policy"`
	// Trusted are the networks of other proxies in front of this one. With append, their headers are kept and added to, and those of everybody else are replaced.
	Trusted []Network `yaml:"trusted,omitempty"`
	// Standard writes the header Forwarded of RFC 7239, too.
	Standard bool `yaml:"standard"`
	// ClientCertificate writes the client's certificate to x-forwarded-client-cert in Envoy's format. It needs a listener with a clientCA.
	ClientCertificate CertificateDetail `yaml:"clientCertificate"`
}

// ForwardedPolicy is what is done with the headers that say who the client is.
type ForwardedPolicy string

// The policies.
const (
	// ForwardedAppend adds the client's address to x-forwarded-for. The headers that say only one thing are written by the proxy, unless the client is trusted.
	ForwardedAppend ForwardedPolicy = "append"
	// ForwardedReplace drops what the client sent, and writes them.
	ForwardedReplace ForwardedPolicy = "replace"
	// ForwardedStrip drops what the client sent, and writes none.
	ForwardedStrip ForwardedPolicy = "strip"
	// ForwardedKeep passes on what the client sent, unchecked.
	ForwardedKeep ForwardedPolicy = "keep"
)

var policies = []string{string(ForwardedAppend), string(ForwardedReplace), string(ForwardedStrip), string(ForwardedKeep)}

// Expected says which policies there are.
func (ForwardedPolicy) Expected() string { return strings.Join(policies, ", ") }

// UnmarshalText reads a policy.
func (p *ForwardedPolicy) UnmarshalText(text []byte) error {
	if !slices.Contains(policies, string(text)) {
		return strictyaml.UnknownName{Name: string(text), Known: policies}
	}
	*p = ForwardedPolicy(text)
	return nil
}

// CertificateDetail is how much of a client's certificate is passed on.
type CertificateDetail string

// The details.
const (
	CertificateNone    CertificateDetail = "none"
	CertificateDetails CertificateDetail = "details" // By, Hash, Subject, URI and DNS
	CertificateFull    CertificateDetail = "full"    // and the certificate itself
)

var details = []string{string(CertificateNone), string(CertificateDetails), string(CertificateFull)}

// Expected says which details there are.
func (CertificateDetail) Expected() string { return strings.Join(details, ", ") }

// UnmarshalText reads a detail.
func (d *CertificateDetail) UnmarshalText(text []byte) error {
	if !slices.Contains(details, string(text)) {
		return strictyaml.UnknownName{Name: string(text), Known: details}
	}
	*d = CertificateDetail(text)
	return nil
}

// Network is a range of addresses. In YAML it is 10.0.0.0/8, or one address.
type Network string

// Expected says how a network is written.
func (Network) Expected() string { return "a network such as 10.0.0.0/8, or an address" }

// UnmarshalText reads a network.
func (n *Network) UnmarshalText(text []byte) error {
	if a, err := netip.ParseAddr(string(text)); err == nil && a.Zone() == "" {
		*n = Network(netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()).String())
		return nil
	}
	p, err := netip.ParsePrefix(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a network", text)
	}
	*n = Network(p.Masked().String())
	return nil
}

// Prefix is the network; one that was not read from YAML may be none, which holds no address.
func (n Network) Prefix() netip.Prefix {
	p, err := netip.ParsePrefix(string(n))
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// Headers are the rules of a route for the headers of its calls. They come after what Forwarded does.
type Headers struct {
	// Authority that endpoints see, in place of the one that the client named.
	Authority string      `yaml:"authority,omitempty"`
	Request   HeaderRules `yaml:"request"`
	// Response rules change the header of a response, also of one that the proxy itself gives. What is removed is removed from trailers, too.
	Response HeaderRules `yaml:"response"`
}

// HeaderRules change headers. A name is in one of the lists only.
type HeaderRules struct {
	// Set replaces all headers of these names.
	Set []HeaderValue `yaml:"set,omitempty"`
	// Add leaves those that there are.
	Add []HeaderValue `yaml:"add,omitempty"`
	// Remove takes all headers of these names away.
	Remove []string `yaml:"remove,omitempty"`
}

// HeaderValue is a header.
type HeaderValue struct {
	Name  string `yaml:"name"`
	Value string `yaml:"value"`
}

// SetDefaults is what a listener does.
func (f *Forwarded) SetDefaults() {
	// Endpoints learn the client's address, and the chain of proxies before it stays visible. Nobody's certificate is passed on unasked.
	*f = Forwarded{Policy: ForwardedAppend, ClientCertificate: CertificateNone}
}

const maxHeaderValues = 8 << 10 // of the rules of a route, each way: they come on top of what a client may send

func (v *validation) forwarded(at string, f *Forwarded, clientCA bool) {
	if f.Policy != ForwardedAppend && len(f.Trusted) > 0 {
		v.add(at+".trusted", Problem{Message: fmt.Sprintf("is set, and the policy %s treats all clients alike", f.Policy), Hint: "use the policy append, or leave trusted away"})
	}
	if (f.Policy == ForwardedStrip || f.Policy == ForwardedKeep) && f.Standard {
		v.add(at+".standard", Problem{Message: fmt.Sprintf("is true, and the policy %s writes no headers", f.Policy), Hint: "use append or replace"})
	}
	if f.ClientCertificate == CertificateNone || f.ClientCertificate == "" {
		return
	}
	if f.Policy == ForwardedStrip || f.Policy == ForwardedKeep {
		v.add(at+".clientCertificate", Problem{Message: fmt.Sprintf("is %s, and the policy %s writes no headers", f.ClientCertificate, f.Policy), Hint: "use append or replace"})
	} else if !clientCA {
		v.add(at+".clientCertificate", Problem{Message: fmt.Sprintf("is %s, and clients have no certificate", f.ClientCertificate), Hint: "set tls.clientCA of the listener, which demands one"})
	}
}

func (v *validation) headers(at string, h *Headers) {
	if h.Authority != "" && !isAuthority(h.Authority) {
		v.found(at+".authority", strictyaml.Quote(h.Authority), "a host, or host:port: without a scheme")
	}
	v.rules(at+".request", &h.Request)
	v.rules(at+".response", &h.Response)
}

func (v *validation) rules(at string, r *HeaderRules) {
	first := map[string]string{} // where a name is, by the name
	list := map[string]string{}  // and in which list
	sum := 0
	name := func(in, path, name string) {
		if name == "" {
			v.required(path, "the name of a header")
			return
		}
		if p, bad := protected(name); bad {
			v.add(path, p)
			return
		}
		key := strings.ToLower(name)
		switch before, twice := first[key]; {
		case !twice:
			first[key], list[key] = path, in
		case in != list[key]:
			v.add(path, Problem{Message: fmt.Sprintf("%s is in %s%s too", strictyaml.Quote(name), list[key], v.line(before)), Hint: "a header is set, added or removed: keep one of them"})
		case in != "add":
			v.add(path, Problem{Message: fmt.Sprintf("%s is there twice", strictyaml.Quote(name)), Hint: "keep one of them, or use add for several values"})
		}
	}
	value := func(path string, h HeaderValue) {
		sum += len(h.Name) + len(h.Value)
		switch {
		case h.Value == "":
			v.required(path, "the value of the header")
		case h.Value != strings.Trim(h.Value, " \t"):
			v.found(path, strictyaml.Quote(h.Value), "no spaces around the value, which HTTP does not carry")
		case strings.HasSuffix(strings.ToLower(h.Name), "-bin"):
			if !isBase64(h.Value) {
				v.found(path, strictyaml.Quote(h.Value), "base64, as the name ends in -bin")
			}
		case strings.ContainsFunc(h.Value, func(r rune) bool { return r < ' ' || r > '~' }):
			v.found(path, strictyaml.Quote(h.Value), "printable ASCII, which is what gRPC allows")
		}
	}
	for i, h := range r.Set {
		p := fmt.Sprintf("%s.set[%d]", at, i)
		name("set", p+".name", h.Name)
		value(p+".value", h)
	}
	for i, h := range r.Add {
		p := fmt.Sprintf("%s.add[%d]", at, i)
		name("add", p+".name", h.Name)
		value(p+".value", h)
	}
	for i, n := range r.Remove {
		name("remove", fmt.Sprintf("%s.remove[%d]", at, i), n)
	}
	if sum > maxHeaderValues {
		v.add(at, Problem{Message: fmt.Sprintf("has %d bytes of headers", sum), Expected: fmt.Sprintf("at most %d", maxHeaderValues)})
	}
}

// protected reports a header that rules must not change, since the call would break.
func protected(name string) (Problem, bool) {
	lower := strings.ToLower(name)
	quoted := strictyaml.Quote(name)
	switch {
	case lower == ":authority", lower == "host":
		return Problem{Message: quoted + " is the authority of a call", Hint: "use headers.authority to change it"}, true
	case strings.HasPrefix(name, ":"):
		return Problem{Message: quoted + " is a pseudo-header, which says what the call is", Expected: "a header without a colon"}, true
	case !httpguts.ValidHeaderFieldName(name) || len(name) > 256:
		return Problem{Message: quoted + " is not a header name", Expected: "up to 256 letters, digits and characters such as '-' and '_'"}, true
	case lower == "content-type", lower == "content-length", lower == "te", lower == "trailer":
		return Problem{Message: quoted + " is part of how gRPC and HTTP/2 frame a message", Expected: "another header"}, true
	case slices.Contains([]string{"connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade"}, lower):
		return Problem{Message: quoted + " is for one connection alone, and HTTP/2 does not have it", Expected: "another header"}, true
	case strings.HasPrefix(lower, "grpc-"):
		return Problem{Message: quoted + " is reserved by gRPC, as all names that begin with grpc- are", Expected: "another header"}, true
	case lower == "levada-stream-ended":
		return Problem{Message: quoted + " says why this proxy ended a call", Expected: "another header"}, true
	}
	return Problem{}, false
}

func isBase64(s string) bool {
	for part := range strings.SplitSeq(s, ",") {
		if _, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(part, "=")); err != nil {
			return false
		}
	}
	return true
}

// isAuthority says whether a is a host, or host:port.
func isAuthority(a string) bool {
	host := a
	if h, _, err := splitAddress(a, false); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	return isHost(host) && (!strings.Contains(host, ":") || strings.HasPrefix(a, "["))
}
