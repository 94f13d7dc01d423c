// Package header decodes, checks and encodes header blocks for a proxy: HPACK (RFC 7541) by golang.org/x/net, and what RFC 9113 section 8 and gRPC
// ask of the fields.
//
// Peers repeat themselves: from a connection's second call on, most blocks are a few indexes into a table. A [Reader] that sees the same indexes
// again with the table unchanged gives the same [Set], decoded and checked already, and a [Writer] that has written a Set before, with its
// table unchanged since, writes the same bytes. So a call costs no decoding, no encoding and no memory for its headers.
package header

import (
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2/hpack"
)

// Field is a header field.
type Field = hpack.HeaderField

// Set is a decoded block. It and what hangs on it never change once a Reader has returned it.
type Set struct {
	Fields []Field
	// Size is the size of the list: RFC 9113 section 6.5.2.
	Size int
	// TooLarge: the list was larger than the Reader allows, and Fields is not all of it.
	TooLarge bool
	// Err says what is malformed in a way that every kind of block must not be.
	Err error

	request  *Request
	response *Response
	cached   bool // it may come again
}

// Cached reports whether the Set may be read again, so that what is found out about it is worth keeping.
func (s *Set) Cached() bool { return s.cached }

// Get returns the first value of a field that is not a pseudo header, in lower case.
func (s *Set) Get(name string) (string, bool) {
	for i := range s.Fields {
		if s.Fields[i].Name == name {
			return s.Fields[i].Value, true
		}
	}
	return "", false
}

// Derive is a Set with other fields, which are to go on in place of those of s. It may come again as often as s does, if its maker keeps it.
func (s *Set) Derive(fields []Field) *Set {
	d := &Set{Fields: fields, Err: s.Err, cached: s.cached}
	for _, f := range fields {
		d.Size += len(f.Name) + len(f.Value) + fieldRoom
	}
	return d
}

// Summary is what describes a request after its header was sent: the pseudo headers, host and user-agent, and what Request says. It shares no memory with s.
func (s *Set) Summary() *Set {
	var fields []Field
	for _, f := range s.Fields {
		if f.IsPseudo() || f.Name == "host" || f.Name == "user-agent" {
			fields = append(fields, Field{Name: strings.Clone(f.Name), Value: strings.Clone(f.Value)})
		}
	}
	r := *s.Request()
	d := s.Derive(fields)
	described := d.Request()
	r.Method, r.Scheme, r.Authority, r.Path, r.TimeoutText = described.Method, described.Scheme, described.Authority, described.Path, strings.Clone(r.TimeoutText)
	d.request, d.cached = &r, false
	return d
}

// malformed is an Err.
type malformed string

func (m malformed) Error() string { return string(m) }

// check looks at what holds for every block, RFC 9113 sections 8.2 and 8.3, and removes space around values: that makes a block malformed, but gRPC's
// own libraries send it. Only for a Set that no Reader has returned yet.
func (s *Set) check() error {
	regular := false
	for i := range s.Fields {
		s.Fields[i].Value = withoutOuterSpace(s.Fields[i])
		name, value := s.Fields[i].Name, s.Fields[i].Value
		if strings.HasPrefix(name, ":") {
			if regular {
				return malformed("the pseudo header " + name + " after other headers")
			}
		} else {
			regular = true
			if !validName(name) {
				return malformed("the header name " + strconv.Quote(name))
			}
			switch name {
			case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
				return malformed("the header " + name + ", which HTTP/2 does not have")
			case "te":
				if value != "trailers" {
					return malformed("a te header other than trailers")
				}
			}
		}
		if !httpguts.ValidHeaderFieldValue(value) || value != strings.Trim(value, " \t") {
			return malformed("the value of the header " + strconv.Quote(name))
		}
	}
	return nil
}

// withoutOuterSpace is the value of a field without space around it, which by RFC 9110 section 5.5 is not part of it. In a status message it is: it is
// encoded there, as gRPC allows for any byte. A pseudo header stays malformed.
func withoutOuterSpace(f Field) string {
	const space = " \t"
	inner := strings.Trim(f.Value, space)
	if len(inner) == len(f.Value) || strings.HasPrefix(f.Name, ":") {
		return f.Value
	}
	if f.Name != "grpc-message" {
		return inner
	}
	encode := strings.NewReplacer(" ", "%20", "\t", "%09").Replace
	if inner == "" {
		return encode(f.Value)
	}
	before, after, _ := strings.Cut(f.Value, inner)
	return encode(before) + inner + encode(after)
}

func validName(name string) bool {
	if name == "" {
		return false
	}
	for i := range len(name) {
		if c := name[i]; c >= 'A' && c <= 'Z' || !httpguts.IsTokenRune(rune(c)) {
			return false
		}
	}
	return true
}

// Request is what a proxy wants to know of a call's first block.
type Request struct {
	Method, Scheme, Authority, Path string
	// GRPC: the content type is gRPC's.
	GRPC bool
	// Timeout is grpc-timeout; negative if there is none, or a BadTimeout that says TimeoutText.
	Timeout     time.Duration
	BadTimeout  bool
	TimeoutText string
	// Length is content-length; negative if there is none.
	Length int64
	// Err says what makes the request malformed.
	Err error
}

// Request reads the set as the first block of a call.
func (s *Set) Request() *Request {
	if s.request == nil {
		s.request = parseRequest(s)
	}
	return s.request
}

func parseRequest(s *Set) *Request {
	r := &Request{Timeout: -1, Length: -1, Err: s.Err}
	seen := map[string]bool{}
	fail := func(text string) {
		if r.Err == nil {
			r.Err = malformed(text)
		}
	}
	for _, f := range s.Fields {
		if f.IsPseudo() {
			if seen[f.Name] {
				fail("a second " + f.Name)
			}
			seen[f.Name] = true
		}
		switch f.Name {
		case ":method":
			r.Method = f.Value
		case ":scheme":
			r.Scheme = f.Value
		case ":authority":
			r.Authority = f.Value
		case ":path":
			r.Path = f.Value
		case "host":
			if seen["host"] || seen[":authority"] && r.Authority != f.Value {
				fail("a host header that says something else than :authority or another host header")
			}
			if seen["host"] = true; !seen[":authority"] {
				r.Authority = f.Value
			}
		case "content-type":
			r.GRPC = IsGRPC(f.Value)
		case "grpc-timeout":
			if d, ok := parseTimeout(f.Value); ok {
				r.Timeout = d
			} else {
				r.BadTimeout, r.TimeoutText = true, f.Value
			}
		case "content-length":
			n, ok := parseLength(f.Value)
			if !ok || seen["content-length"] && n != r.Length {
				fail("the content-length " + strconv.Quote(f.Value))
			}
			seen["content-length"] = true
			r.Length = n
		default:
			if f.IsPseudo() {
				fail("the pseudo header " + f.Name + " in a request")
			}
		}
	}
	switch {
	case r.Method == "":
		fail("no :method")
	case r.Method == "CONNECT":
		if seen[":scheme"] || seen[":path"] || r.Authority == "" {
			fail("a CONNECT that does not have :authority alone")
		}
	case !seen[":scheme"]:
		fail("no :scheme")
	case r.Path == "":
		fail("no :path")
	case r.Path[0] != '/' && (r.Path != "*" || r.Method != "OPTIONS"):
		fail("a :path that does not begin with /")
	}
	switch {
	case !isToken(r.Method):
		fail("the :method " + strconv.Quote(r.Method))
	case strings.ContainsFunc(r.Path, isBlank):
		fail("a :path with a space")
	case strings.ContainsFunc(r.Authority, isBlank) || strings.ContainsAny(r.Authority, "@/?#"):
		fail("the :authority " + strconv.Quote(r.Authority))
	}
	return r
}

func isBlank(r rune) bool { return r <= ' ' || r == 0x7f }

func isToken(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !httpguts.IsTokenRune(r) })
}

// IsGRPC reports whether a content type is gRPC's over HTTP/2.
func IsGRPC(contentType string) bool {
	rest, ok := strings.CutPrefix(contentType, "application/grpc")
	return ok && (rest == "" || rest[0] == '+' || rest[0] == ';')
}

func parseLength(s string) (int64, bool) {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// parseTimeout reads a grpc-timeout: up to 8 digits and a unit.
func parseTimeout(s string) (time.Duration, bool) {
	if len(s) < 2 || len(s) > 9 {
		return 0, false
	}
	var unit time.Duration
	switch s[len(s)-1] {
	case 'H':
		unit = time.Hour
	case 'M':
		unit = time.Minute
	case 'S':
		unit = time.Second
	case 'm':
		unit = time.Millisecond
	case 'u':
		unit = time.Microsecond
	case 'n':
		unit = time.Nanosecond
	default:
		return 0, false
	}
	n, ok := parseLength(s[:len(s)-1])
	if !ok {
		return 0, false
	}
	if n > int64(1<<63-1)/int64(unit) {
		return 1<<63 - 1, true
	}
	return time.Duration(n) * unit, true
}

// FormatTimeout writes a grpc-timeout, rounded up so that the backend never gives up before the proxy.
func FormatTimeout(d time.Duration) string {
	d = max(d, 1)
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{time.Nanosecond, "n"}, {time.Microsecond, "u"}, {time.Millisecond, "m"}, {time.Second, "S"}, {time.Minute, "M"}} {
		if n := (d-1)/u.unit + 1; n < 1e8 {
			return strconv.FormatInt(int64(n), 10) + u.name
		}
	}
	return strconv.FormatInt(int64((d-1)/time.Hour+1), 10) + "H"
}

// Response is what a proxy wants to know of a block that a backend sent: the first, an informational one, or trailers.
type Response struct {
	// Status is :status, 0 if there is none, as in trailers.
	Status int
	// GRPC: the content type is gRPC's.
	GRPC bool
	// HasCode: there is a grpc-status. Code is its number, or negative if it is none.
	HasCode bool
	Code    int
	// CodeText is grpc-status as it came.
	CodeText string
	// Message is grpc-message as it came, percent-encoded.
	Message string
	// ContentType is as it came.
	ContentType string
	// Pushback is grpc-retry-pushback-ms: see HasPushback; negative forbids to try again.
	Pushback    time.Duration
	HasPushback bool
	// Length is content-length; negative if there is none.
	Length int64
	// Err says what makes it malformed.
	Err error
}

// Response reads the set as a block of a response.
func (s *Set) Response() *Response {
	if s.response == nil {
		s.response = parseResponse(s)
	}
	return s.response
}

func parseResponse(s *Set) *Response {
	r := &Response{Length: -1, Err: s.Err}
	fail := func(text string) {
		if r.Err == nil {
			r.Err = malformed(text)
		}
	}
	for _, f := range s.Fields {
		switch f.Name {
		case ":status":
			n, ok := parseLength(f.Value)
			if r.Status != 0 || !ok || len(f.Value) != 3 || n < 100 {
				fail("the :status " + strconv.Quote(f.Value))
			}
			r.Status = int(n)
		case "content-type":
			r.ContentType, r.GRPC = f.Value, IsGRPC(f.Value)
		case "content-length":
			n, ok := parseLength(f.Value)
			if !ok || r.Length >= 0 && n != r.Length {
				fail("the content-length " + strconv.Quote(f.Value))
			}
			r.Length = n
		case "grpc-status":
			if r.HasCode {
				fail("a second grpc-status")
			}
			n, ok := parseLength(f.Value)
			if !ok || f.Value == "" || n > 1<<31-1 {
				n = -1
			}
			r.HasCode, r.Code, r.CodeText = true, int(n), f.Value
		case "grpc-message":
			r.Message = f.Value
		case "grpc-retry-pushback-ms":
			if n, err := strconv.ParseInt(f.Value, 10, 32); err == nil {
				r.Pushback = time.Duration(n) * time.Millisecond
			} else {
				r.Pushback = -1
			}
			r.HasPushback = true
		default:
			if f.IsPseudo() {
				fail("the pseudo header " + f.Name + " in a response")
			}
		}
	}
	return r
}
