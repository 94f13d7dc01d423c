// Package redact removes credentials from texts that people and logs get: URLs with passwords or tokens, and connection strings.
package redact

import "regexp"

// Mask takes the place of a credential.
const Mask = "xxxxx"

var (
	// The password of a URL's userinfo: everything after its first colon, up to the last @ before the path.
	password = regexp.MustCompile(`([a-zA-Z][a-zA-Z0-9+.-]*://[^\s/?#:@"',]*):([^\s/?#"']*)@`)
	// Userinfo without a password is a token for NATS, and a name elsewhere.
	token = regexp.MustCompile(`((?:nats|tls|ws|wss)://)([^\s/?#:@"',]+)@`)
	// Parameters of a query or of a connection string such as "host=db password='a b'".
	parameter = regexp.MustCompile(`(?i)\b((?:ssl_?)?password|passwd|pwd|secret|token|access_key|sslpassword)=('(?:[^'\\]|\\.)*'|[^\s&"']+)`)
)

// Text returns s with all credentials that can be recognized in it masked. Names of users and hosts stay.
func Text(s string) string {
	if !mayHold(s) {
		return s
	}
	s = password.ReplaceAllString(s, "${1}:"+Mask+"@")
	s = token.ReplaceAllString(s, "${1}"+Mask+"@")
	return parameter.ReplaceAllString(s, "${1}="+Mask)
}

// mayHold is a quick look for what all patterns need: most texts have neither.
func mayHold(s string) bool {
	for i := range len(s) {
		if s[i] == '@' || s[i] == '=' {
			return true
		}
	}
	return false
}

// Error returns err with a text that has no credentials. errors.Is and errors.As see the original one.
func Error(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	if clean := Text(text); clean != text {
		return &redacted{err, clean}
	}
	return err
}

type redacted struct {
	err  error
	text string
}

func (r *redacted) Error() string { return r.text }

func (r *redacted) Unwrap() error { return r.err }
