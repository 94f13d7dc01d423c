package redact

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

func TestText(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"nats://127.0.0.1:4222", "nats://127.0.0.1:4222"},
		{"nats://joe:s3cret@host:4222", "nats://joe:xxxxx@host:4222"},
		{"nats://t0ken@host", "nats://xxxxx@host"},
		{"nats://a:b@h1,nats://c:d@h2:4222", "nats://a:xxxxx@h1,nats://c:xxxxx@h2:4222"},
		{"tls://:pw@h", "tls://:xxxxx@h"},
		{"postgres://u:p%40ss:w@rd@db/x?sslmode=require", "postgres://u:xxxxx@db/x?sslmode=require"},
		{"postgres://u@db/x?password=geheim&user=u", "postgres://u@db/x?password=xxxxx&user=u"},
		{"host=db user=u password='a b\\'c' dbname=x", "host=db user=u password=xxxxx dbname=x"},
		{"amqp://guest:guest@localhost/", "amqp://guest:xxxxx@localhost/"},
		{`dial "nats://u:p@h:1": refused`, `dial "nats://u:xxxxx@h:1": refused`},
		{"mail to joe@example.org, a=b", "mail to joe@example.org, a=b"},
		{"count=5 url=http://x/y:z@w", "count=5 url=http://x/y:z@w"},
		{"", ""},
	} {
		if got := Text(c.in); got != c.want {
			t.Errorf("%q: %q, want %q", c.in, got, c.want)
		}
	}
}

func TestErrorKeepsWhatItWraps(t *testing.T) {
	err := Error(fmt.Errorf("connect to nats://a:b@c: %w", io.EOF))
	if !errors.Is(err, io.EOF) || err.Error() != "connect to nats://a:xxxxx@c: EOF" {
		t.Fatalf("%v", err)
	}
	if Error(io.EOF) != io.EOF || Error(nil) != nil {
		t.Fatal("an error without credentials is another one")
	}
}

func FuzzText(f *testing.F) {
	f.Add("nats", "user", "secret", "host")
	f.Fuzz(func(t *testing.T, scheme, user, secret, host string) {
		for _, s := range []string{scheme, user, host} {
			if strings.Trim(s, "abcdefghijklmnopqrstuvwxyz") != "" || s == "" {
				t.Skip()
			}
		}
		if secret == "" || strings.ContainsAny(secret, " \t\n\r\v\f/?#\"'") || strings.ToValidUTF8(secret, "") != secret {
			t.Skip() // such characters are escaped in a URL
		}
		got := Text("cannot reach " + scheme + "://" + user + ":" + secret + "@" + host + ": refused")
		if want := "cannot reach " + scheme + "://" + user + ":xxxxx@" + host + ": refused"; got != want {
			t.Fatalf("%q", got)
		}
	})
}
