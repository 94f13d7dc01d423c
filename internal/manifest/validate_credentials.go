package manifest

import (
	"fmt"

	"github.com/levada-io/levada/api/v1alpha1"
)

func checkTLS(r *report, t *v1alpha1.TLS, at path) {
	if t == nil {
		return
	}
	switch {
	case t.CertSecret != nil && t.KeySecret == nil:
		r.missing(at.at("keySecret"), Problem{Code: CodeTLS, Message: "certSecret is there without keySecret", Expected: "both or neither"})
	case t.CertSecret == nil && t.KeySecret != nil:
		r.missing(at.at("certSecret"), Problem{Code: CodeTLS, Message: "keySecret is there without certSecret", Expected: "both or neither"})
	}
}

func checkNatsAuth(r *report, a *v1alpha1.NatsAuth, at path) {
	if a == nil {
		return
	}
	atMostOne(r, at, CodeExclusive, "auth", []choice{{"basic", a.Basic != nil}, {"token", a.Token != nil}, {"nkey", a.NKey != nil}})
	if b := a.Basic; b != nil && (b.User == nil || b.Password == nil) {
		r.missing(at.at("basic"), Problem{Code: CodeRequired, Message: "basic needs a user and a password", Expected: "user and password, each a secret's name and key"})
	}
}

func checkSASL(r *report, s *v1alpha1.SASL, at path) {
	if s == nil {
		return
	}
	if s.Mechanism == nil || *s.Mechanism == "" {
		r.required(at.at("mechanism"), oneOf([]v1alpha1.SASLType{v1alpha1.SASLTypePlain, v1alpha1.SASLTypeSCRAMSHA256, v1alpha1.SASLTypeSCRAMSHA512, v1alpha1.SASLTypeGSSAPI, v1alpha1.SASLTypeOAuth}))
		return
	}
	enum(r, at.at("mechanism"), CodeEnum, *s.Mechanism, v1alpha1.SASLTypePlain, v1alpha1.SASLTypeSCRAMSHA256, v1alpha1.SASLTypeSCRAMSHA512, v1alpha1.SASLTypeGSSAPI, v1alpha1.SASLTypeOAuth)
	for _, m := range []struct {
		mechanism v1alpha1.SASLType
		field     string
		set       bool
	}{
		{v1alpha1.SASLTypePlain, "plain", s.Plain != nil},
		{v1alpha1.SASLTypeSCRAMSHA256, "scramsha256", s.SCRAMSHA256 != nil},
		{v1alpha1.SASLTypeSCRAMSHA512, "scramsha512", s.SCRAMSHA512 != nil},
		{v1alpha1.SASLTypeGSSAPI, "gssapi", s.GSSAPI != nil},
		{v1alpha1.SASLTypeOAuth, "oauth", s.OAuth != nil},
	} {
		if m.mechanism == *s.Mechanism && !m.set {
			r.missing(at.at(m.field), Problem{Code: CodeSASL, Message: fmt.Sprintf("mechanism %s needs %s", m.mechanism, m.field), Expected: m.field + " with the secrets to use"})
		}
	}
	if g := s.GSSAPI; g != nil && g.AuthType != nil {
		enum(r, at.at("gssapi.authType"), CodeEnum, *g.AuthType, v1alpha1.KRB5UserAuth, v1alpha1.KRB5KeytabAuth)
	}
}
