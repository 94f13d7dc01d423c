package v1alpha1

import corev1 "k8s.io/api/core/v1"

// TLS configures a client's side of a TLS connection.
type TLS struct {
	// InsecureSkipVerify trusts any server. Default: false.
	InsecureSkipVerify bool `json:"insecureSkipVerify,omitempty"`
	// CACertSecret holds the certificates of those to trust. Default: the system's.
	CACertSecret *corev1.SecretKeySelector `json:"caCertSecret,omitempty"`
	// CertSecret and KeySecret hold the client's own certificate and key; both or neither.
	CertSecret *corev1.SecretKeySelector `json:"certSecret,omitempty"`
	KeySecret  *corev1.SecretKeySelector `json:"keySecret,omitempty"`
}

// ServerTLS configures a server's side of a TLS connection. (Levada)
type ServerTLS struct {
	// CertSecret and KeySecret hold the server's certificate and key. Required.
	CertSecret *corev1.SecretKeySelector `json:"certSecret,omitempty"`
	KeySecret  *corev1.SecretKeySelector `json:"keySecret,omitempty"`
	// ClientCASecret holds the certificates of those from whom clients must have theirs. Default: clients need none.
	ClientCASecret *corev1.SecretKeySelector `json:"clientCASecret,omitempty"`
}

// BasicAuth is a user and a password in secrets.
type BasicAuth struct {
	User     *corev1.SecretKeySelector `json:"user,omitempty"`
	Password *corev1.SecretKeySelector `json:"password,omitempty"`
}

// NatsAuth is how a client says to NATS who it is. At most one field is set.
type NatsAuth struct {
	Basic *BasicAuth                `json:"basic,omitempty"`
	Token *corev1.SecretKeySelector `json:"token,omitempty"`
	NKey  *corev1.SecretKeySelector `json:"nkey,omitempty"`
}

// PulsarAuth is how a client says to Pulsar who it is. At most one field is set.
type PulsarAuth struct {
	Token     *corev1.SecretKeySelector `json:"token,omitempty"`
	BasicAuth *PulsarBasicAuth          `json:"basicAuth,omitempty"`
}

// PulsarBasicAuth is a user and a password in secrets.
type PulsarBasicAuth struct {
	Username *corev1.SecretKeySelector `json:"username,omitempty"`
	Password *corev1.SecretKeySelector `json:"password,omitempty"`
}

// SASLType names a mechanism.
type SASLType string

// The mechanisms.
const (
	SASLTypePlain       SASLType = "PLAIN"
	SASLTypeSCRAMSHA256 SASLType = "SCRAM-SHA-256"
	SASLTypeSCRAMSHA512 SASLType = "SCRAM-SHA-512"
	SASLTypeGSSAPI      SASLType = "GSSAPI"
	SASLTypeOAuth       SASLType = "OAUTHBEARER"
)

// SASL is how a client says to Kafka who it is. The field that belongs to Mechanism is set.
type SASL struct {
	// Mechanism is PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, GSSAPI or OAUTHBEARER.
	Mechanism   *SASLType  `json:"mechanism,omitempty"`
	GSSAPI      *GSSAPI    `json:"gssapi,omitempty"`
	Plain       *SASLPlain `json:"plain,omitempty"`
	SCRAMSHA256 *SASLPlain `json:"scramsha256,omitempty"`
	SCRAMSHA512 *SASLPlain `json:"scramsha512,omitempty"`
	OAuth       *SASLOAuth `json:"oauth,omitempty"`
}

// KRB5AuthType names a way to get a Kerberos ticket.
type KRB5AuthType string

// The ways to get a Kerberos ticket.
const (
	KRB5UserAuth   KRB5AuthType = "KRB5_USER_AUTH"
	KRB5KeytabAuth KRB5AuthType = "KRB5_KEYTAB_AUTH"
)

// GSSAPI is Kerberos.
type GSSAPI struct {
	ServiceName          string                    `json:"serviceName"`
	Realm                string                    `json:"realm"`
	UsernameSecret       *corev1.SecretKeySelector `json:"usernameSecret,omitempty"`
	AuthType             *KRB5AuthType             `json:"authType,omitempty"`
	PasswordSecret       *corev1.SecretKeySelector `json:"passwordSecret,omitempty"`
	KeytabSecret         *corev1.SecretKeySelector `json:"keytabSecret,omitempty"`
	KerberosConfigSecret *corev1.SecretKeySelector `json:"kerberosConfigSecret,omitempty"`
}

// SASLPlain is a user and a password in secrets.
type SASLPlain struct {
	UserSecret     *corev1.SecretKeySelector `json:"userSecret,omitempty"`
	PasswordSecret *corev1.SecretKeySelector `json:"passwordSecret,omitempty"`
	Handshake      bool                      `json:"handshake,omitempty"`
}

// SASLOAuth fetches a token from TokenEndpoint.
type SASLOAuth struct {
	ClientID      *corev1.SecretKeySelector `json:"clientID,omitempty"`
	ClientSecret  *corev1.SecretKeySelector `json:"clientSecret,omitempty"`
	TokenEndpoint string                    `json:"tokenEndpoint,omitempty"`
}

// AWSAssumeRole takes on a role before it speaks to AWS.
type AWSAssumeRole struct {
	// RoleARN is the role, arn:aws:iam::ACCOUNT:role/NAME. Required.
	RoleARN string `json:"roleArn"`
	// SessionName in AWS's logs, 2 to 64 characters of letters, digits and _=,.@-
	SessionName *string `json:"sessionName,omitempty"`
	// DurationSeconds is how long the credentials live, 900 to 43200. Default: 3600.
	DurationSeconds *int32 `json:"durationSeconds,omitempty"`
	// ExternalID that the role's owner asked for.
	ExternalID *string `json:"externalID,omitempty"`
	// Policy narrows what the role may do, as JSON.
	Policy *string `json:"policy,omitempty"`
	// PolicyARNs narrow what the role may do.
	PolicyARNs []string `json:"policyArns,omitempty"`
}
