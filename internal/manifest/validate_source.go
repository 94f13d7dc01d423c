package manifest

import (
	"encoding/base64"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"

	kyaml "sigs.k8s.io/yaml"

	"github.com/levada-io/levada/api/v1alpha1"
)

// sourceView is a source as its rules see it.
type sourceView struct {
	source  *v1alpha1.Source
	vertex  string
	serving bool
	at      path
}

var sourceRules = []func(*report, sourceView){
	sourceHasOneType,
	generatorIsValid,
	httpSourceIsValid,
	kafkaSourceIsValid,
	natsSourceIsValid,
	jetStreamSourceIsValid,
	pulsarSourceIsValid,
	sqsSourceIsValid,
	servingSourceIsInPlace,
	udSourceRuns,
	fileSourceIsValid,
	streamSourceIsValid,
	transformerIsValid,
}

func checkSource(r *report, s sourceView) {
	for _, rule := range sourceRules {
		rule(r, s)
	}
}

func sourceHasOneType(r *report, v sourceView) {
	s := v.source
	exactlyOne(r, v.at, CodeSourceType, "a source", []choice{
		{"generator", s.Generator != nil}, {"http", s.HTTP != nil}, {"kafka", s.Kafka != nil}, {"nats", s.Nats != nil},
		{"jetstream", s.JetStream != nil}, {"pulsar", s.Pulsar != nil}, {"sqs", s.Sqs != nil}, {"serving", s.Serving != nil},
		{"udsource", s.UDSource != nil}, {"file", s.File != nil}, {"stdin", s.Stdin != nil},
		{"stream", s.Stream != nil},
	})
}

// Bounds of the generator: more would not be a test of the pipeline but of the machine's memory.
const (
	maxGeneratorRPU     = 10_000_000
	maxGeneratorMsgSize = 64 << 20
)

func generatorIsValid(r *report, v sourceView) {
	g, at := v.source.Generator, v.at.at("generator")
	if g == nil {
		return
	}
	within(r, g.RPU, 1, maxGeneratorRPU, at.at("rpu"), CodeGenerator)
	within(r, g.MsgSize, 0, maxGeneratorMsgSize, at.at("msgSize"), CodeGenerator)
	atLeast(r, g.KeyCount, 0, at.at("keyCount"), CodeGenerator)
	positive(r, g.Duration, at.at("duration"))
	notNegative(r, g.Jitter, at.at("jitter"))
	if g.ValueBlob == nil {
		return
	}
	if _, err := base64.StdEncoding.DecodeString(*g.ValueBlob); err != nil {
		r.add(at.at("valueBlob"), Problem{
			Code: CodeBase64, Message: "valueBlob is not base64: " + err.Error(),
			DidYouMean: base64.StdEncoding.EncodeToString([]byte(ifShort(*g.ValueBlob))), Expected: "the payload in base64",
		})
	}
}

// ifShort is s, unless it is too long to be shown.
func ifShort(s string) string {
	if len(s) > 60 {
		return ""
	}
	return s
}

func httpSourceIsValid(r *report, v sourceView) {
	h, at := v.source.HTTP, v.at.at("http")
	if h == nil {
		return
	}
	checkPorts(r, h.Ports, at.at("ports"))
	checkAuthorization(r, h.Auth, at.at("auth"))
}

func checkPorts(r *report, p *v1alpha1.Ports, at path) {
	if p == nil {
		return
	}
	within(r, p.HTTPS, 1, 65535, at.at("https"), CodePort)
	within(r, p.HTTP, 1, 65535, at.at("http"), CodePort)
	https := int32(8443)
	if p.HTTPS != nil {
		https = *p.HTTPS
	}
	if p.HTTP != nil && *p.HTTP == https {
		r.add(at.at("http"), Problem{Code: CodePort, Message: fmt.Sprintf("http and https are both on port %d", https), Expected: "two ports"})
	}
	for _, port := range []struct {
		field string
		value *int32
	}{{"https", p.HTTPS}, {"http", p.HTTP}} {
		if port.value != nil && (*port.value == 2469 || *port.value == 2470) {
			r.add(at.at(port.field), Problem{Code: CodePort, Message: fmt.Sprintf("port %d is where the vertex serves its own metrics and errors", *port.value), Expected: "another port"})
		}
	}
}

func checkAuthorization(r *report, a *v1alpha1.Authorization, at path) {
	if a != nil && a.Token == nil {
		r.required(at.at("token"), "the secret with the bearer token")
	}
}

func kafkaSourceIsValid(r *report, v sourceView) {
	k, at := v.source.Kafka, v.at.at("kafka")
	if k == nil {
		return
	}
	checkKafka(r, k.Brokers, k.Topic, k.Config, k.TLS, k.SASL, at)
	for _, topic := range strings.Split(k.Topic, ",") {
		if k.Topic != "" && strings.TrimSpace(topic) == "" {
			r.add(at.at("topic"), Problem{Code: CodeKafka, Message: "the list of topics has an empty place", Expected: "topics joined by commas"})
		}
	}
	if k.ConsumerGroup == "" {
		r.missing(at.at("consumerGroup"), Problem{
			Code: CodeConsumerGroup, Message: "the kafka source has no consumerGroup",
			Hint: "without a group no progress is kept, and a restart reads everything again",
		})
	}
}

func checkKafka(r *report, brokers []string, topic, config string, tls *v1alpha1.TLS, sasl *v1alpha1.SASL, at path) {
	if len(brokers) == 0 {
		r.required(at.at("brokers"), "at least one HOST:PORT")
	}
	for i, b := range brokers {
		hostPort(r, b, at.at("brokers").item(i))
	}
	if topic == "" {
		r.required(at.at("topic"), "the name of a topic")
	}
	if config != "" {
		var settings map[string]any
		if text, err := yamlText(config); err != nil {
			r.add(at.at("config"), Problem{Code: CodeKafka, Message: "config is not YAML: " + err.Error()})
		} else if err := kyaml.Unmarshal(text, &settings); err != nil {
			r.add(at.at("config"), Problem{Code: CodeKafka, Message: "config does not hold settings", Expected: "a YAML object of Kafka client settings"})
		}
	}
	checkTLS(r, tls, at.at("tls"))
	checkSASL(r, sasl, at.at("sasl"))
}

func natsSourceIsValid(r *report, v sourceView) {
	n, at := v.source.Nats, v.at.at("nats")
	if n == nil {
		return
	}
	natsURL(r, n.URL, at.at("url"))
	checkSubject(r, n.Subject, true, at.at("subject"))
	checkTLS(r, n.TLS, at.at("tls"))
	checkNatsAuth(r, n.Auth, at.at("auth"))
}

func jetStreamSourceIsValid(r *report, v sourceView) {
	j, at := v.source.JetStream, v.at.at("jetstream")
	if j == nil {
		return
	}
	natsURL(r, j.URL, at.at("url"))
	if j.Stream == "" {
		r.required(at.at("stream"), "the name of a stream")
	}
	if strings.ContainsAny(j.Consumer, ".*> \t") {
		r.add(at.at("consumer"), Problem{Code: CodeSubject, Message: fmt.Sprintf("%s cannot be the name of a consumer", quote(j.Consumer)), Expected: "a name without spaces, '.', '*' and '>'"})
	}
	for i, s := range j.FilterSubjects {
		checkSubject(r, s, true, at.at("filter_subjects").item(i))
	}
	deliverPolicy(r, j.DeliverPolicy, at.at("deliver_policy"))
	checkTLS(r, j.TLS, at.at("tls"))
	checkNatsAuth(r, j.Auth, at.at("auth"))
}

func deliverPolicy(r *report, policy string, at path) {
	words := []string{"all", "new", "last", "last_per_subject"}
	name, argument, hasArgument := strings.Cut(strings.TrimSpace(policy), " ")
	switch name {
	case "":
		return
	case "by_start_sequence", "by_start_time":
		if n, err := strconv.ParseUint(strings.TrimSpace(argument), 10, 63); err != nil || n == 0 {
			what := "a sequence number, 1 or more"
			if name == "by_start_time" {
				what = "milliseconds since 1970"
			}
			r.add(at, Problem{Code: CodeDeliverPolicy, Message: fmt.Sprintf("%s does not say where to start", quote(policy)), Expected: name + " and " + what})
		}
		return
	}
	for _, w := range words {
		if name == w && !hasArgument {
			return
		}
	}
	all := append(words, "by_start_sequence N", "by_start_time MILLISECONDS")
	r.add(at, Problem{Code: CodeDeliverPolicy, Message: fmt.Sprintf("there is no deliver_policy %s", quote(policy)), Expected: oneOf(all), DidYouMean: r.suggest(name, words)})
}

func checkSubject(r *report, subject string, wildcards bool, at path) {
	if subject == "" {
		r.required(at, "a subject")
		return
	}
	valid := !strings.ContainsAny(subject, " \t\r\n")
	tokens := strings.Split(subject, ".")
	for i, token := range tokens {
		switch {
		case token == "", token == ">" && (!wildcards || i != len(tokens)-1), token == "*" && !wildcards:
			valid = false
		}
	}
	if !valid {
		expected := "words joined by dots"
		if wildcards {
			expected += "; '*' stands for a word, '>' at the end for the rest"
		} else {
			expected += ", without '*' and '>': a message is sent to one subject"
		}
		r.add(at, Problem{Code: CodeSubject, Message: fmt.Sprintf("%s is not a subject", quote(subject)), Expected: expected})
	}
}

func pulsarSourceIsValid(r *report, v sourceView) {
	p, at := v.source.Pulsar, v.at.at("pulsar")
	if p == nil {
		return
	}
	checkPulsar(r, p.ServerAddr, p.Topic, p.Auth, at)
	if p.ConsumerName == "" {
		r.required(at.at("consumerName"), "a name")
	}
	if p.SubscriptionName == "" {
		r.required(at.at("subscriptionName"), "a name")
	}
	if d := p.DeadLetterPolicy; d != nil {
		if d.Topic == "" {
			r.required(at.at("deadLetterPolicy.topic"), "the topic for what fails again and again")
		}
		atLeast(r, &d.MaxRedelivery, 1, at.at("deadLetterPolicy.maxRedelivery"), CodeNumber)
	}
}

func checkPulsar(r *report, serverAddr, topic string, auth *v1alpha1.PulsarAuth, at path) {
	if serverAddr == "" {
		r.required(at.at("serverAddr"), "pulsar://HOST:6650")
	} else if !strings.HasPrefix(serverAddr, "pulsar://") && !strings.HasPrefix(serverAddr, "pulsar+ssl://") {
		r.add(at.at("serverAddr"), Problem{Code: CodeAddress, Message: fmt.Sprintf("%s is not the address of a Pulsar server", quote(serverAddr)), Expected: "pulsar://HOST:6650 or pulsar+ssl://HOST:6651"})
	}
	if topic == "" {
		r.required(at.at("topic"), "the name of a topic")
	}
	if auth != nil {
		atMostOne(r, at.at("auth"), CodeExclusive, "auth", []choice{{"token", auth.Token != nil}, {"basicAuth", auth.BasicAuth != nil}})
	}
}

func sqsSourceIsValid(r *report, v sourceView) {
	s, at := v.source.Sqs, v.at.at("sqs")
	if s == nil {
		return
	}
	checkSqs(r, s.AWSRegion, s.QueueName, s.QueueOwnerAWSAccountID, s.AssumeRole, at)
	within(r, s.VisibilityTimeout, 0, 43200, at.at("visibilityTimeout"), CodeSqs)
	within(r, s.MaxNumberOfMessages, 1, 10, at.at("maxNumberOfMessages"), CodeSqs)
	within(r, s.WaitTimeSeconds, 0, 20, at.at("waitTimeSeconds"), CodeSqs)
}

var (
	awsAccount  = regexp.MustCompile(`^\d{12}$`)
	roleARN     = regexp.MustCompile(`^arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]+$`)
	sessionName = regexp.MustCompile(`^[\w=,.@-]{2,64}$`)
)

func checkSqs(r *report, region, queue, account string, role *v1alpha1.AWSAssumeRole, at path) {
	if region == "" {
		r.required(at.at("awsRegion"), "a region such as eu-west-1")
	}
	if queue == "" {
		r.required(at.at("queueName"), "the name of a queue")
	}
	if account == "" {
		r.required(at.at("queueOwnerAWSAccountID"), "the account that owns the queue")
	} else if !awsAccount.MatchString(account) {
		p := Problem{Code: CodeSqs, Message: fmt.Sprintf("%s is not an AWS account", quote(account)), Expected: "twelve digits"}
		if digits := strings.ReplaceAll(account, "-", ""); awsAccount.MatchString(digits) {
			p.DidYouMean = digits
		}
		r.add(at.at("queueOwnerAWSAccountID"), p)
	}
	if role == nil {
		return
	}
	at = at.at("assumeRole")
	if role.RoleARN == "" {
		r.required(at.at("roleArn"), "arn:aws:iam::ACCOUNT:role/NAME")
	} else if !roleARN.MatchString(role.RoleARN) {
		r.add(at.at("roleArn"), Problem{Code: CodeAssumeRole, Message: fmt.Sprintf("%s is not a role", quote(role.RoleARN)), Expected: "arn:aws:iam::ACCOUNT:role/NAME"})
	}
	within(r, role.DurationSeconds, 900, 43200, at.at("durationSeconds"), CodeAssumeRole)
	if n := role.SessionName; n != nil && !sessionName.MatchString(*n) {
		r.add(at.at("sessionName"), Problem{Code: CodeAssumeRole, Message: fmt.Sprintf("%s cannot be the name of a session", quote(*n)), Expected: "2 to 64 letters, digits or characters of _=,.@-"})
	}
}

func servingSourceIsInPlace(r *report, v sourceView) {
	if v.source.Serving != nil && !v.serving {
		r.add(v.at.at("serving"), Problem{Code: CodeServing, Message: "the source serving works in a ServingPipeline only", Hint: "use the source http, or make the kind ServingPipeline"})
	}
}

func udSourceRuns(r *report, v sourceView) {
	if u := v.source.UDSource; u != nil {
		containerRuns(r, u.Container, v.vertex, v1alpha1.RoleUDSource, v.at.at("udsource.container"))
	}
}

func fileSourceIsValid(r *report, v sourceView) {
	if s := v.source.Stdin; s != nil {
		recordsAreValid(r, v.at.at("stdin"), s.Format, s.CSVHeader, s.Delimiter, s.OnMalformed)
	}
	f, at := v.source.File, v.at.at("file")
	if f == nil {
		return
	}
	if f.Path == "" {
		r.required(at.at("path"), "the path of a file")
	}
	recordsAreValid(r, at, f.Format, f.CSVHeader, f.Delimiter, f.OnMalformed)
}

// recordsAreValid checks how a file or the standard input is cut into messages.
func recordsAreValid(r *report, at path, format v1alpha1.FileFormat, header *bool, delimiter string, malformed v1alpha1.MalformedPolicy) {
	enum(r, at.at("format"), CodeEnum, format, v1alpha1.FileFormatLines, v1alpha1.FileFormatNDJSON, v1alpha1.FileFormatCSV)
	enum(r, at.at("onMalformed"), CodeEnum, malformed, v1alpha1.MalformedDeadLetter, v1alpha1.MalformedSkip, v1alpha1.MalformedFail)
	if header != nil && format != v1alpha1.FileFormatCSV {
		r.add(at.at("csvHeader"), Problem{Code: CodeNoEffect, Message: "csvHeader has no effect on a file that is not csv", Hint: "set format: csv"})
	}
	switch {
	case delimiter == "":
	case format != v1alpha1.FileFormatCSV:
		r.add(at.at("delimiter"), Problem{Code: CodeNoEffect, Message: "delimiter has no effect on a file that is not csv", Hint: "set format: csv"})
	case delimiter == `\t`:
	case len(delimiter) != 1 || delimiter[0] >= 0x80 || strings.ContainsAny(delimiter, "\x00\"\r\n"):
		r.add(at.at("delimiter"), Problem{Code: CodeDelimiter, Message: fmt.Sprintf("%s cannot separate fields", quote(delimiter)), Expected: `one ASCII character, for instance ';' or '\t'`})
	}
}

// The schemes of a gRPC target that a producer can be found by.
var streamSchemes = []string{"dns", "passthrough", "unix", "unix-abstract", "ipv4", "ipv6"}

func streamSourceIsValid(r *report, v sourceView) {
	s, at := v.source.Stream, v.at.at("stream")
	if s == nil {
		return
	}
	streamTarget(r, s.Target, at.at("target"))
	if s.Stream == "" {
		r.required(at.at("stream"), "the name of a stream at the producer")
	}
	enum(r, at.at("payload"), CodeEnum, s.Payload, v1alpha1.StreamPayloadValue, v1alpha1.StreamPayloadMessage)
	checkTLS(r, s.TLS, at.at("tls"))
}

// streamTarget checks what grpc-go would only say when the pipeline runs.
func streamTarget(r *report, target string, at path) {
	const expected = "dns:///HOST:PORT"
	if target == "" {
		r.required(at, expected)
		return
	}
	p := Problem{Code: CodeStreamTarget, Message: fmt.Sprintf("%s does not name a producer", quote(target)), Expected: expected}
	scheme, rest, _ := strings.Cut(target, ":")
	rest = strings.TrimLeft(rest, "/")
	_, isURL, _ := strings.Cut(target, "://")
	switch {
	case strings.ContainsAny(target, " \t\r\n"):
	case slices.Contains(streamSchemes, scheme):
		if rest != "" {
			return
		}
	case isURL != "" && slices.Contains([]string{"http", "https", "grpc", "grpcs"}, scheme):
		p.DidYouMean = "dns:///" + strings.TrimSuffix(rest, "/")
		if strings.HasSuffix(scheme, "s") {
			p.Hint = "tls: {} beside it makes the connection one with TLS"
		}
	case isURL != "":
		p.Message = fmt.Sprintf("a producer is not reached by %s", quote(scheme))
		p.DidYouMean = r.suggest(scheme, streamSchemes)
	default:
		host, port, err := net.SplitHostPort(target)
		if err == nil && host != "" && port != "" && validPort(port) {
			return
		}
	}
	r.add(at, p)
}

func transformerIsValid(r *report, v sourceView) {
	t, at := v.source.Transformer, v.at.at("transformer")
	if t == nil {
		return
	}
	functionRuns(r, t.Container, t.Builtin, v.vertex, v1alpha1.RoleTransformer, at)
	if t.RetryStrategy != nil {
		checkRetry(r, t.RetryStrategy, at.at("retryStrategy"))
		if onFailure := t.RetryStrategy.OnFailure; onFailure != nil && *onFailure == v1alpha1.OnFailureFallback {
			r.add(at.at("retryStrategy.onFailure"), Problem{Code: CodeFallback, Message: "a transformer has no fallback", Expected: "retry or drop"})
		}
	}
}

// yamlText refuses, before it is decoded, a YAML text inside a field that would cost too much.
func yamlText(text string) ([]byte, error) {
	root, err := parseYAML([]byte(text))
	if err != nil {
		return nil, err
	}
	if root != nil {
		d := &decoder{}
		if !d.bounded(&locator{root: root}) {
			return nil, fmt.Errorf("%s", d.problems[0].Message)
		}
	}
	return []byte(text), nil
}
