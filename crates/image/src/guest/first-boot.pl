#!/usr/bin/perl
# Applies a NoCloud seed at the first boot: "first-boot settings" before logins are possible,
# "first-boot script" when the system is up. See docs/images.md of Belljar for what it understands.
use strict;
use warnings;

my $seed  = '/var/lib/cloud/seed/nocloud';
my $state = '/var/lib/belljar/first-boot';
$ENV{PATH} = '/usr/sbin:/usr/bin:/sbin:/bin';
umask 022;

sub note { print "first boot: @_\n"; }

sub slurp {
    my ($path) = @_;
    open my $file, '<', $path or return undef;
    local $/;
    my $text = <$file>;
    return defined $text ? $text : '';
}

sub spew {
    my ($path, $text, $mode) = @_;
    open my $file, '>', "$path.new" or die "cannot write $path: $!\n";
    chmod $mode, "$path.new";
    print $file $text;
    close $file or die "cannot write $path: $!\n";
    rename "$path.new", $path or die "cannot write $path: $!\n";
}

sub run {
    my @command = @_;
    system(@command) == 0 or note("'@command' failed");
}

# Runs a command that reads TEXT.
sub feed {
    my ($text, @command) = @_;
    open my $pipe, '|-', @command or return note("cannot run $command[0]");
    print $pipe $text;
    close $pipe or note("'$command[0]' failed");
}

# The seed's two files: from a disk with the label cidata, else from the file system.
sub read_seed {
    my ($disk) = grep { -e } map { "/dev/disk/by-label/$_" } qw(cidata CIDATA);
    if ($disk) {
        my $at = '/run/belljar-seed';
        mkdir $at;
        if (system('mount', '-o', 'ro', $disk, $at) == 0) {
            my @files = (slurp("$at/meta-data"), slurp("$at/user-data"));
            system('umount', $at);
            return @files;
        }
        note("cannot mount $disk");
    }
    return (slurp("$seed/meta-data"), slurp("$seed/user-data"));
}

sub scalar_of {
    my ($text) = @_;
    $text =~ s/^\s+|\s+$//g;
    return $1 if $text =~ /^"(.*)"$/ || $text =~ /^'(.*)'$/;
    return $text;
}

# The part of YAML that seeds are made of: maps, lists, scalars and blocks of text, by indentation.
sub parse {
    my @lines = split /\n/, $_[0];
    my $value = parse_block(\@lines);
    note("not understood: $lines[0]") if defined next_line(\@lines);
    return $value;
}

sub indent_of { $_[0] =~ /^( *)/; return length $1; }

# Passes over comments and empty lines.
sub next_line {
    my ($lines) = @_;
    shift @$lines while @$lines && $lines->[0] =~ /^\s*(#|$)/;
    return @$lines ? $lines->[0] : undef;
}

sub parse_block {
    my ($lines) = @_;
    return '' unless defined next_line($lines);
    my $indent = indent_of($lines->[0]);
    if ($lines->[0] =~ /^ *- /  || $lines->[0] =~ /^ *-$/) {
        my @list;
        while (defined next_line($lines) && indent_of($lines->[0]) == $indent && $lines->[0] =~ /^ *-( |$)/) {
            my $line = shift @$lines;
            my ($rest) = $line =~ /^ *- ?(.*)$/;
            if ($rest =~ /^[A-Za-z_-]+:( |$)/ || $rest =~ /^- /) {
                my $inner = $indent + 2;
                unshift @$lines, (' ' x $inner) . $rest;
                push @list, parse_block($lines);
            } elsif ($rest eq '') {
                push @list, parse_block($lines);
            } else {
                push @list, flow($rest);
            }
        }
        return \@list;
    }
    my %map;
    while (defined next_line($lines) && indent_of($lines->[0]) == $indent && $lines->[0] =~ /^ *([A-Za-z0-9_.-]+):(.*)$/) {
        my ($key, $rest) = ($1, $2);
        shift @$lines;
        $rest =~ s/^\s+//;
        if ($rest =~ /^\|/) {
            my @block;
            push @block, shift @$lines
                while @$lines && ($lines->[0] =~ /^\s*$/ || indent_of($lines->[0]) > $indent);
            my $inner = @block ? indent_of($block[0]) : 0;
            $map{$key} = join '', map { (length $_ > $inner ? substr($_, $inner) : '') . "\n" } @block;
        } elsif ($rest ne '') {
            $map{$key} = flow($rest);
        } elsif (defined next_line($lines) && (indent_of($lines->[0]) > $indent
            || (indent_of($lines->[0]) == $indent && $lines->[0] =~ /^ *- /))) {
            $map{$key} = parse_block($lines);
        } else {
            $map{$key} = '';
        }
    }
    return \%map;
}

sub flow {
    my ($text) = @_;
    if ($text =~ /^\[(.*)\]\s*$/) {
        my @words = map { scalar_of($_) } split /,/, $1;
        return \@words;
    }
    return scalar_of($text);
}

sub list { my ($value) = @_; return ref $value eq 'ARRAY' ? @$value : defined $value && $value ne '' ? ($value) : (); }
sub is_true { return defined $_[0] && $_[0] =~ /^(true|yes|on|1)$/i; }

sub set_hostname {
    my ($name) = @_;
    return unless $name =~ /^[A-Za-z0-9.-]+$/;
    my ($short) = split /\./, $name;
    spew('/etc/hostname', "$short\n", 0644);
    my $hosts = slurp('/etc/hosts');
    $hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" unless defined $hosts;
    my $names = $short eq $name ? $name : "$name $short";
    $hosts =~ s/^127\.0\.1\.1\s.*\n//mg;
    $hosts =~ s/^(127\.0\.0\.1\s.*\n)/${1}127.0.1.1\t$names\n/m or $hosts .= "127.0.1.1\t$names\n";
    spew('/etc/hosts', $hosts, 0644);
    if (open my $file, '>', '/proc/sys/kernel/hostname') { print $file $short; close $file; }
}

sub add_keys {
    my ($user, @keys) = @_;
    return unless @keys;
    my (undef, undef, $uid, $gid, undef, undef, undef, $home) = getpwnam $user or return note("no user $user");
    my $directory = "$home/.ssh";
    mkdir $directory, 0700;
    my $old = slurp("$directory/authorized_keys");
    $old = '' unless defined $old;
    my %known = map { $_ => 1 } split /\n/, $old;
    $old .= "$_\n" for grep { !$known{$_} } @keys;
    spew("$directory/authorized_keys", $old, 0600);
    chown $uid, $gid, $directory, "$directory/authorized_keys";
}

sub set_password {
    my ($user, $password, $is_hash) = @_;
    feed("$user:$password\n", 'chpasswd', $is_hash ? '-e' : ());
}

sub add_user {
    my ($settings) = @_;
    return note('the entry "default" of users stands for no user here') unless ref $settings eq 'HASH';
    my $name = $settings->{name};
    return note('a user without a name') unless defined $name && $name =~ /^[a-z_][a-z0-9_-]*$/;
    unless (defined getpwnam $name) {
        my @groups = map { split /[ ,]+/ } list($settings->{groups});
        my @known = grep { defined getgrnam $_ } @groups;
        my @arguments = ('--create-home', '--user-group', '--shell', $settings->{shell} || '/bin/bash');
        push @arguments, '--groups', join(',', @known) if @known;
        push @arguments, '--comment', $settings->{gecos} if $settings->{gecos};
        run('useradd', @arguments, $name);
        # Who sits at the console owns the machine: without a password, none is asked for there.
        run('passwd', '--quiet', '--delete', $name) unless is_true($settings->{lock_passwd});
        run('passwd', '--quiet', '--lock', 'root') if $settings->{sudo};
    }
    my $hash = $settings->{passwd} || $settings->{hashed_passwd};
    set_password($name, $hash, 1) if $hash;
    set_password($name, $settings->{plain_text_passwd}, 0) if $settings->{plain_text_passwd};
    if (my @rules = list($settings->{sudo})) {
        mkdir '/etc/sudoers.d', 0755;
        spew("/etc/sudoers.d/90-$name", join('', map { "$name $_\n" } @rules), 0440);
    }
    add_keys($name, list($settings->{ssh_authorized_keys}));
}

sub quote { my ($word) = @_; $word =~ s/'/'\\''/g; return "'$word'"; }

sub apply_config {
    my ($text) = @_;
    my $config = parse($text);
    $config = {} if $config eq '';
    unless (ref $config eq 'HASH') {
        note('the user-data is no map');
        return undef;
    }
    my @script;
    set_hostname($config->{fqdn} || $config->{hostname}) if $config->{fqdn} || $config->{hostname};
    add_user($_) for list($config->{users});
    if ($config->{user} && !ref $config->{user}) { add_user({name => $config->{user}, sudo => 'ALL=(ALL) NOPASSWD:ALL'}); }
    my $main = $config->{user} && !ref $config->{user} ? $config->{user} : 'root';
    add_keys($main, list($config->{ssh_authorized_keys}));
    set_password($main, $config->{password}, 0) if $config->{password};
    if ($config->{timezone} && -e "/usr/share/zoneinfo/$config->{timezone}") {
        unlink '/etc/localtime';
        symlink "/usr/share/zoneinfo/$config->{timezone}", '/etc/localtime';
    }
    if (my @packages = list($config->{packages})) {
        push @script, 'apt-get update -qq', 'DEBIAN_FRONTEND=noninteractive apt-get install -y -qq '
            . join(' ', map { quote($_) } @packages);
    }
    for my $command (list($config->{runcmd})) {
        push @script, ref $command ? join(' ', map { quote($_) } @$command) : $command;
    }
    my %known = map { $_ => 1 } qw(fqdn hostname users user ssh_authorized_keys password timezone
        packages runcmd script manage_etc_hosts chpasswd ssh_pwauth disable_root);
    note("user-data: '$_' is not understood; cloud-init, as a package of the image, would")
        for grep { !$known{$_} } sort keys %$config;
    return $config->{script} if $config->{script};
    return @script ? join("\n", '#!/bin/sh', @script, '') : undef;
}

sub host_keys {
    return unless -x '/usr/bin/ssh-keygen' && -d '/etc/ssh';
    return if glob '/etc/ssh/ssh_host_*_key';
    run('ssh-keygen', '-A');
}

sub settings {
    host_keys();
    my ($meta, $user) = read_seed();
    my $meta_data = defined $meta ? parse($meta) : {};
    $meta_data = {} unless ref $meta_data eq 'HASH';
    my $instance = $meta_data->{'instance-id'} || 'none';
    my $last = slurp("$state/instance");
    return if defined $last && $last eq "$instance\n";
    mkdir '/var/lib/belljar';
    mkdir $state, 0700;
    set_hostname($meta_data->{'local-hostname'}) if $meta_data->{'local-hostname'};
    my $script;
    if (defined $user && $user =~ /^#!/) { $script = $user; }
    elsif (defined $user && $user =~ /^#cloud-config/) { $script = apply_config($user); }
    elsif (defined $user && $user =~ /\S/) { note('the user-data is neither a script nor a #cloud-config'); }
    spew("$state/script", $script, 0700) if defined $script;
    spew("$state/instance", "$instance\n", 0600);
}

sub script {
    rename "$state/script", "$state/script.run" or die "no script: $!\n";
    my $status = system "$state/script.run";
    note('the script ended with status ' . ($status >> 8)) if $status;
    exit($status ? 1 : 0);
}

# Prints what a file of user-data says to this program, a line for each value.
sub explain {
    my ($at, $value) = @_;
    if (ref $value eq 'HASH') { explain("$at.$_", $value->{$_}) for sort keys %$value; }
    elsif (ref $value eq 'ARRAY') { explain("$at\[$_]", $value->[$_]) for 0 .. $#$value; }
    else { $value =~ s/\n/\\n/g; print "$at = $value\n"; }
}

my $what = shift || '';
if ($what eq 'settings') { settings(); }
elsif ($what eq 'script') { script(); }
elsif ($what eq 'explain' && @ARGV == 1) {
    my $text = slurp($ARGV[0]);
    die "cannot read $ARGV[0]: $!\n" unless defined $text;
    explain('', parse($text));
}
else { die "usage: first-boot settings|script|explain FILE\n"; }
