package proxy

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/levada-io/levada/internal/h2/header"
	"github.com/levada-io/levada/internal/proxy/config"
)

// edits are the rules for headers of a route, one way, made ready when the configuration is read. The zero value changes nothing.
type edits struct {
	authority string
	drop      map[string]bool // names that are set or removed
	remove    map[string]bool // names that are removed
	fields    []header.Field  // that are set or added
}

func newEdits(authority string, r *config.HeaderRules) edits {
	e := edits{authority: authority}
	drop := func(name string) {
		if e.drop == nil {
			e.drop = map[string]bool{}
		}
		e.drop[name] = true
	}
	for _, name := range r.Remove {
		name = strings.ToLower(name)
		drop(name)
		if e.remove == nil {
			e.remove = map[string]bool{}
		}
		e.remove[name] = true
	}
	for _, h := range r.Set {
		name := strings.ToLower(h.Name)
		drop(name)
		e.fields = append(e.fields, header.Field{Name: name, Value: h.Value})
	}
	for _, h := range r.Add {
		e.fields = append(e.fields, header.Field{Name: strings.ToLower(h.Name), Value: h.Value})
	}
	return e
}

func (e *edits) none() bool { return e.authority == "" && e.drop == nil && e.fields == nil }

// response is the header of a response as the client gets it.
func (e *edits) response(set *header.Set) *header.Set {
	if e.none() {
		return set
	}
	fields := make([]header.Field, 0, len(set.Fields)+len(e.fields))
	for _, f := range set.Fields {
		if !e.drop[f.Name] {
			fields = append(fields, f)
		}
	}
	return set.Derive(append(fields, e.fields...))
}

// own adds to a header that the proxy itself has made.
func (e *edits) own(fields []header.Field) []header.Field { return append(fields, e.fields...) }

// trailers are those without what is removed.
func (e *edits) trailers(set *header.Set) *header.Set { return without(set, e.remove) }

func without(set *header.Set, names map[string]bool) *header.Set {
	if !slices.ContainsFunc(set.Fields, func(f header.Field) bool { return names[f.Name] }) {
		return set
	}
	return set.Derive(slices.DeleteFunc(slices.Clone(set.Fields), func(f header.Field) bool { return names[f.Name] }))
}

// forwarding is a config.Forwarded, made ready.
type forwarding struct {
	policy   config.ForwardedPolicy
	trusted  []netip.Prefix
	standard bool
	detail   config.CertificateDetail
}

func newForwarding(c *config.Forwarded) *forwarding {
	if c == nil {
		return nil
	}
	f := &forwarding{policy: c.Policy, standard: c.Standard, detail: c.ClientCertificate}
	for _, n := range c.Trusted {
		f.trusted = append(f.trusted, n.Prefix())
	}
	return f
}

// origin is what is known of a client's connection.
type origin struct {
	ip     netip.Addr // not valid for a client at a Unix socket
	tls    *tls.ConnectionState
	by     []*url.URL // the URI names of the certificate that the client saw
	secure bool
}

func originOf(nc net.Conn) origin {
	var o origin
	if a, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		o.ip = a.AddrPort().Addr().Unmap().WithZone("")
	}
	if t, ok := nc.(*tls.Conn); ok {
		state := t.ConnectionState()
		o.tls, o.secure = &state, true
	}
	return o
}

// The headers that say who a client is. None of them passes unless it is written here, or comes from a proxy that is trusted.
const (
	forwardedFor   = "x-forwarded-for"
	forwardedProto = "x-forwarded-proto"
	forwardedHost  = "x-forwarded-host"
	forwardedPort  = "x-forwarded-port"
	forwardedCert  = "x-forwarded-client-cert"
	forwardedAll   = "forwarded" // RFC 7239
	realIP         = "x-real-ip"
)

var identity = map[string]bool{forwardedFor: true, forwardedProto: true, forwardedHost: true, forwardedPort: true, forwardedCert: true, forwardedAll: true, realIP: true}

// sent is the request as endpoints get it: the client's own, without a copy, where there is nothing to change. The lock is held.
func (f *front) sent(r *route, set *header.Set) *header.Set {
	fw := r.forwarded
	if fw == nil {
		fw = f.forwarded
	}
	if r.clusters == nil || set.TooLarge || fw.policy == config.ForwardedKeep && r.request.none() {
		return set
	}
	fields := make([]header.Field, 0, len(set.Fields)+4+len(r.request.fields))
	var chain forwardedChain
	for _, h := range set.Fields {
		switch {
		case r.request.authority != "" && (h.Name == ":authority" || h.Name == "host"): // they are the same, or only one is there
			h.Value = r.request.authority
		case fw.policy != config.ForwardedKeep && identity[h.Name]:
			chain.note(h.Name, h.Value)
			continue
		case r.request.drop[h.Name]:
			continue
		}
		fields = append(fields, h)
	}
	if fw.policy == config.ForwardedAppend || fw.policy == config.ForwardedReplace {
		fw.write(&f.origin, set.Request().Authority, &chain, func(name, value string) {
			if value != "" && !r.request.drop[name] {
				fields = append(fields, header.Field{Name: name, Value: value})
			}
		})
	}
	return set.Derive(append(fields, r.request.fields...))
}

// sentTrailers are the trailers of a request that is not gRPC.
func (f *front) sentTrailers(r *route, set *header.Set) *header.Set {
	fw := r.forwarded
	if fw == nil {
		fw = f.forwarded
	}
	if fw.policy != config.ForwardedKeep {
		set = without(set, identity) // none of them belongs there
	}
	return without(set, r.request.remove)
}

// forwardedChain is what a client said itself.
type forwardedChain struct{ values map[string]string }

func (c *forwardedChain) note(name, value string) {
	if c.values == nil {
		c.values = map[string]string{}
	}
	if before := c.values[name]; before != "" {
		value = before + ", " + value
	}
	c.values[name] = value
}

// write gives the headers that endpoints get.
func (fw *forwarding) write(o *origin, authority string, chain *forwardedChain, put func(name, value string)) {
	trusted := slices.ContainsFunc(fw.trusted, func(p netip.Prefix) bool { return p.Contains(o.ip) })
	// Without a list everybody may have stood behind others, which x-forwarded-for goes on to say: it is read from its end.
	appends := fw.policy == config.ForwardedAppend && (trusted || len(fw.trusted) == 0)
	proto, address := "http", ""
	if o.secure {
		proto = "https"
	}
	if o.ip.IsValid() {
		address = o.ip.String()
	}
	said := func(name string) string {
		if trusted {
			return chain.values[name]
		}
		return ""
	}
	joined := func(name, value string) string {
		if before := chain.values[name]; appends && before != "" {
			if value == "" {
				return before
			}
			return before + ", " + value
		}
		return value
	}
	put(forwardedFor, joined(forwardedFor, address))
	put(forwardedProto, orElse(said(forwardedProto), proto))
	put(forwardedHost, orElse(said(forwardedHost), authority))
	put(forwardedPort, said(forwardedPort))
	put(realIP, said(realIP))
	if fw.standard {
		put(forwardedAll, joined(forwardedAll, standardElement(o.ip, proto, authority)))
	} else {
		put(forwardedAll, said(forwardedAll))
	}
	cert := said(forwardedCert)
	if fw.detail != config.CertificateNone {
		if own := o.certificate(fw.detail); own != "" && cert != "" {
			cert += "," + own
		} else if own != "" {
			cert = own
		}
	}
	put(forwardedCert, cert)
}

func orElse(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// standardElement is an element of Forwarded: RFC 7239, section 4.
func standardElement(ip netip.Addr, proto, host string) string {
	node := "unknown"
	switch {
	case ip.Is4():
		node = ip.String()
	case ip.IsValid():
		node = `"[` + ip.String() + `]"`
	}
	element := "for=" + node + ";proto=" + proto
	if host != "" {
		element += ";host=" + quoted(host)
	}
	return element
}

// quoted is a quoted-string: RFC 9110, section 5.6.4.
func quoted(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// certificate is the client's in the format of Envoy's x-forwarded-client-cert; empty if it has none. Clients with one have been verified.
func (o *origin) certificate(detail config.CertificateDetail) string {
	if o.tls == nil || len(o.tls.PeerCertificates) == 0 || len(o.tls.VerifiedChains) == 0 {
		return ""
	}
	leaf := o.tls.PeerCertificates[0]
	var pairs []string
	for _, u := range o.by {
		pairs = append(pairs, "By="+certificateValue(u.String()))
	}
	sum := sha256.Sum256(leaf.Raw)
	pairs = append(pairs, "Hash="+hex.EncodeToString(sum[:]))
	if detail == config.CertificateFull {
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})
		pairs = append(pairs, `Cert="`+strings.ReplaceAll(url.QueryEscape(string(text)), "+", "%20")+`"`)
	}
	pairs = append(pairs, `Subject="`+escaped(leaf.Subject.String())+`"`)
	for _, u := range leaf.URIs {
		pairs = append(pairs, "URI="+certificateValue(u.String()))
	}
	for _, name := range leaf.DNSNames {
		pairs = append(pairs, "DNS="+certificateValue(name))
	}
	return strings.Join(pairs, ";")
}

// certificateValue is quoted where it has what separates values from each other, so that a name in a certificate cannot pretend to be another element.
func certificateValue(s string) string {
	if e := escaped(s); e != s || strings.ContainsAny(s, `,;= \`) {
		return `"` + e + `"`
	}
	return s
}

// escaped is s in a quoted value, in the characters that a header may have.
func escaped(s string) string {
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"', c == '\\':
			b.Write([]byte{'\\', c})
		case c < ' ' || c > '~':
			b.Write([]byte{'\\', digits[c>>4], digits[c&15]}) // as RFC 2253 writes it
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// uriNames are the URI names of a certificate.
func uriNames(c *x509.Certificate) []*url.URL {
	if c == nil {
		return nil
	}
	return c.URIs
}
