package observe

import (
	"strconv"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/levada-io/levada/internal/proxy"
	"github.com/levada-io/levada/internal/proxy/config"
)

// Kinds of events.
const (
	EventStarted = "started"
	EventEnded   = "ended"
	EventDropped = "dropped"
)

// Event is a line of the tap; a line of the access log is one without a kind. It is only read with this type: writing goes by hand, so that the log costs no
// memory.
type Event struct {
	Kind string    `json:"event"`
	Time time.Time `json:"time"` // when the call began
	ID   string    `json:"id"`

	Client    string `json:"client"`
	TLSPeer   string `json:"tlsPeer"`
	Authority string `json:"authority"`
	Path      string `json:"path"`
	Route     string `json:"route"`
	GRPC      bool   `json:"grpc"`
	UserAgent string `json:"userAgent"`
	Trace     string `json:"trace"`

	// Of calls that have ended:
	Seconds            float64 `json:"seconds"`
	Backend            string  `json:"backend"`
	Endpoint           string  `json:"endpoint"`
	Status             string  `json:"status"`
	Reason             string  `json:"reason"`
	Reset              bool    `json:"reset"`
	Requests           int     `json:"requests"`
	Responses          int     `json:"responses"`
	RequestBytes       int64   `json:"requestBytes"`
	ResponseBytes      int64   `json:"responseBytes"`
	Attempts           int     `json:"attempts"`
	TransparentRetries int     `json:"transparentRetries"`

	// Dropped events, for the kind of that name.
	Dropped int64 `json:"dropped"`
}

// longestText of a client that is logged, in bytes.
const longestText = 8 << 10

// line appends one JSON object and a line feed.
type line []byte

func (l line) text(name, value string) line {
	if value == "" {
		return l
	}
	return quoted(l.name(name), value)
}

func (l line) name(name string) line {
	if l[len(l)-1] != '{' {
		l = append(l, ',')
	}
	return append(append(append(l, '"'), name...), '"', ':')
}

func (l line) number(name string, n int64) line { return strconv.AppendInt(l.name(name), n, 10) }

// some is number without zeros.
func (l line) some(name string, n int64) line {
	if n == 0 {
		return l
	}
	return l.number(name, n)
}

func (l line) flag(name string, yes bool) line {
	if !yes {
		return l
	}
	return append(l.name(name), "true"...)
}

// quoted appends a string of JSON in ASCII and printable: no line feed, no control character of a terminal, no direction of Unicode gets through. What is too
// long is cut.
func quoted(b []byte, s string) []byte {
	cut := len(s) > longestText
	if cut {
		s = s[:longestText]
	}
	b = append(b, '"')
	plain := 0 // bytes at the beginning that stay as they are: nearly always all
	for plain < len(s) && s[plain] >= ' ' && s[plain] <= '~' && s[plain] != '"' && s[plain] != '\\' {
		plain++
	}
	b = append(b, s[:plain]...)
	for i := plain; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c >= ' ' && c <= '~':
			b = append(b, c)
		default:
			r, n := utf8.DecodeRuneInString(s[i:])
			b = appendRune(b, r)
			i += n
			continue
		}
		i++
	}
	if cut {
		b = append(b, "..."...)
	}
	return append(b, '"')
}

// ASCII is a text of JSON as quoted would have written its strings.
func ASCII(text []byte) []byte {
	out := make([]byte, 0, len(text))
	for i := 0; i < len(text); {
		if c := text[i]; c < 0x7f {
			out = append(out, c)
			i++
			continue
		}
		r, n := utf8.DecodeRune(text[i:])
		i += n
		out = appendRune(out, r)
	}
	return out
}

func appendRune(b []byte, r rune) []byte {
	if r > 0xffff {
		high, low := utf16.EncodeRune(r)
		return appendUnit(appendUnit(b, high), low)
	}
	return appendUnit(b, r)
}

func appendUnit(b []byte, r rune) []byte {
	const hex = "0123456789abcdef"
	return append(b, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
}

func (l line) call(c *proxy.Call) line {
	l = append(l.name("time"), '"')
	l = c.Started.UTC().Truncate(time.Microsecond).AppendFormat(l, time.RFC3339Nano) // which Go writes faster than other forms
	l = append(append(l, '"').name("id"), '"')
	l, _ = c.ID.AppendText(l)
	l = append(l, '"').text("client", c.Client).text("tlsPeer", c.TLSPeer).text("authority", c.Authority).text("path", c.Path).text("route", c.Route)
	return l.flag("grpc", c.GRPC).text("userAgent", c.UserAgent).text("trace", c.Trace)
}

// appendBegan appends the event of a call that has begun.
func appendBegan(b []byte, c *proxy.Call) []byte {
	l := append(line(b), '{').text("event", EventStarted).call(c)
	return append(l, '}', '\n')
}

// appendEnded appends a call that has ended: an event of the tap if kind is not empty, or a line of the log.
func appendEnded(b []byte, kind string, e *proxy.Ended) []byte {
	l := append(line(b), '{').text("event", kind).call(&e.Call)
	l = strconv.AppendFloat(l.name("seconds"), seconds(e.Took), 'f', -1, 64)
	l = l.text("backend", e.Backend).text("endpoint", e.Endpoint).text("status", config.Code(e.Code).String()).text("reason", e.Reason).flag("reset", e.Reset)
	l = l.number("requests", int64(e.Requests)).number("responses", int64(e.Responses)).number("requestBytes", e.RequestBytes).number("responseBytes", e.ResponseBytes)
	if e.Attempts > 1 {
		l = l.number("attempts", int64(e.Attempts))
	}
	return append(l.some("transparentRetries", int64(e.TransparentRetries)), '}', '\n')
}

// appendDropped appends that events were dropped here.
func appendDropped(b []byte, n int64) []byte {
	l := append(line(b), '{').text("event", EventDropped).number("dropped", n)
	return append(l, '}', '\n')
}
